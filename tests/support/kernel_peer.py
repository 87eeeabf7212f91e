"""The kernel's TCP behind a TUN device in a network namespace: `unshare -n python -m tests.support.kernel_peer`.

It hands the device's descriptor to whoever started it, serves ports 7, 9 and 19 as tests/interop/go_netstack does, and
obeys the same commands `put` and `get` on standard input.  Needs root.  `KernelPeer` starts it.
"""

import array
import fcntl
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1280


def missing() -> str:
    """Why this machine cannot do it; "" where it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "needs Debian's iproute2 and util-linux"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "network namespaces are not allowed here"


def available() -> set[str]:
    return set(Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split())


class KernelPeer:
    """`tun` is the non-blocking descriptor of its packets.  `close` ends it."""

    def __init__(self, address: str, peer: str, congestion: str) -> None:
        ours, theirs = socket.socketpair()
        command = ["unshare", "-n", sys.executable, "-m", "tests.support.kernel_peer", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*command, address, peer, congestion],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        theirs.close()
        with ours:
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        assert ancillary, "the namespace was not made"
        self.tun = array.array("i", ancillary[0][2])[0]
        os.set_blocking(self.tun, False)
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        os.set_blocking(self.output, False)

    def ask(self, line: str) -> None:
        """Begin a command; its answer is a line of JSON on `output`."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.tun)


# --- in the namespace ---


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _open_tun(address: str, peer: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    _ip("link", "set", "lo", "up")
    _ip("link", "set", "tun0", "mtu", str(MTU), "txqueuelen", "1000", "up")
    _ip("-6", "addr", "add", f"{address}/128", "dev", "tun0", "nodad")
    _ip("-6", "route", "add", f"{peer}/128", "dev", "tun0")
    return tun


def _answer(connection: socket.socket, port: int) -> None:
    with connection:
        if port == 7:
            while data := connection.recv(65536):
                connection.sendall(data)
            return
        if port == 9:
            digest = hashlib.sha256()
            while data := connection.recv(1 << 18):
                digest.update(data)
            connection.sendall(digest.hexdigest().encode())
            return
        asked = b""
        while not asked.endswith(b"\n"):
            asked += connection.recv(100)
        content = os.urandom(int(asked))
        connection.sendall(content + hashlib.sha256(content).hexdigest().encode())


def _serve(port: int, congestion: str) -> None:
    with socket.create_server(("::", port), family=socket.AF_INET6, backlog=512) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())  # connections inherit it
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection, port), daemon=True).start()


def _obey(words: list[str], peer: str, congestion: str) -> dict[str, Any]:
    size = int(words[2])
    with socket.create_connection((peer, int(words[1])), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        if words[0] == "put":
            content = os.urandom(size)
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            wanted, got = hashlib.sha256(content).hexdigest().encode(), b""
        else:
            connection.sendall(b"%d\n" % size)
            wanted, got = b"", b""
        while data := connection.recv(1 << 18):
            got += data
    if words[0] == "get":
        wanted, got = hashlib.sha256(got[:size]).hexdigest().encode(), got[size:]
    return {"ok": got == wanted}


def main() -> None:
    channel, address, peer, congestion = sys.argv[1:]
    tun = _open_tun(address, peer)
    for port in (7, 9, 19):
        threading.Thread(target=_serve, args=(port, congestion), daemon=True).start()
    with socket.socket(fileno=int(channel)) as parent:
        time.sleep(0.2)  # until the listeners are there; the tests themselves wait for nothing
        parent.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tun]))])
    for line in sys.stdin:
        began = time.monotonic()
        try:
            said = _obey(line.split(), peer, congestion)
        except OSError as error:
            said = {"ok": False, "error": repr(error)}
        print(json.dumps(said | {"seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
