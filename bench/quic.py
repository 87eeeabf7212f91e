"""QUIC beside TCP where packets get lost: how late a packet comes, and how much comes through.

    sudo python bench/quic.py                      # 0, 1 and 5 % of loss, three rounds; some five minutes
    sudo python bench/quic.py --rounds 1 --seconds 4 --tcp bbr   # reno else: at such windows CUBIC is no other

Two network namespaces, the relay in one and its two clients in the other, with a TUN device each; between them this
program carries IP packets, 10 ms each way over a link of 20 Mbit/s, and loses some, of TCP and UDP alike (netem would;
a kernel may not have it).  A packet crosses that path twice.  Rounds alternate between the two.
"""

import fcntl
import heapq
import json
import os
import random
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket

CLIENTS, RELAY, PORT = "10.93.0.1", "10.93.0.2", 8443
ONE_WAY_SECONDS = 0.01
# 20 Mbit/s with 50 ms of buffer each way, as a home has: three processes in Python on two cores keep up with it.
BYTES_PER_SECOND, QUEUE_BYTES = 2_500_000, 125_000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# A call: 50 packets of 200 bytes a second, as Opus sends them.
CALL_BYTES, CALL_SECONDS = 200, 0.02
FULL_BYTES = 1280


class LossyPath:
    """The path between the namespaces, carried by a thread."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._stack = ExitStack()
        self._fds: list[int] = []
        self._is_over = False

    def open(self, tcp: str) -> None:
        """`tcp`: the congestion control of both ends."""
        for name, address in (("derpq-a", CLIENTS), ("derpq-b", RELAY)):
            _ip("netns", "add", name)
            self._stack.callback(_ip, "netns", "del", name)
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            self._stack.callback(os.close, fd)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up", "txqueuelen", "2000")
            _ip("netns", "exec", name, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={tcp}")
            self._fds.append(fd)
        thread = threading.Thread(target=self._carry)
        thread.start()
        self._stack.callback(thread.join)

    def close(self) -> None:
        self._is_over = True
        self._stack.close()

    def _carry(self) -> None:
        due: list[tuple[float, int, int, bytes]] = []
        free_at = dict.fromkeys(self._fds, 0.0)  # when the link has sent what it holds
        other = dict(zip(self._fds, reversed(self._fds), strict=True))
        number = 0
        while not self._is_over:
            wait = max(due[0][0] - time.monotonic(), 0.0) if due else 0.2
            ready, _, _ = select.select(self._fds, [], [], min(wait, 0.2))
            now = time.monotonic()
            for fd in ready:
                for _ in range(64):
                    try:
                        packet = os.read(fd, 2048)
                    except BlockingIOError:
                        break
                    free = max(free_at[fd], now)
                    is_full = (free - now) * BYTES_PER_SECOND > QUEUE_BYTES
                    if is_full or random.random() < self.loss:
                        continue
                    free_at[fd] = free + len(packet) / BYTES_PER_SECOND
                    number += 1
                    heapq.heappush(due, (free_at[fd] + ONE_WAY_SECONDS, number, other[fd], packet))
            now = time.monotonic()
            while due and due[0][0] <= now:
                _, _, fd, packet = heapq.heappop(due)
                with suppress(OSError):
                    os.write(fd, packet)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def serve(folder: str) -> Iterator[str]:
    """A relay of ours in its namespace; the pin of its certificate."""
    command = ["ip", "netns", "exec", "derpq-b", sys.executable, "-m", "derp", "serve", f"--listen={RELAY}:{PORT}"]
    command += ["--tls-self-signed", f"--hostname={RELAY}", f"--cert-dir={folder}", f"--key-file={folder}/key"]
    command += [
        "--quic",
        "--stun=false",
        "--http-port=-1",
        "--open",
        "--log-level=error",
        "--self-check=false",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("event") == "map":
                yield event["map"]["Regions"]["900"]["Nodes"][0]["CertName"]
                break
        else:
            raise click.ClickException("the relay ended before it told its map; what it printed is above")
    finally:
        process.terminate()
        process.wait()


def measure(carrier: str, pin: str, seconds: float) -> dict[str, Any]:
    """One round of one carrier, in a process in the clients' namespace."""
    command = ["ip", "netns", "exec", "derpq-a", sys.executable, __file__, "--as-clients", carrier, pin, str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def clients(carrier: str, pin: str, seconds: float) -> dict[str, Any]:
    options = DialOptions(cert_name=pin, environment=None, only_quic=carrier == "quic")
    one, other = NodePrivate.generate(), NodePrivate.generate()
    url, to = f"https://{RELAY}:{PORT}", other.public().raw
    async with (
        open_derp_client(url, one, options=options, timeout_seconds=30) as sender,
        open_derp_client(url, other, options=options, timeout_seconds=30) as receiver,
    ):
        late = await call(sender, receiver, to, seconds)
        goodput = await flat_out(sender, receiver, to, seconds)
    sent = int(seconds / CALL_SECONDS)
    late.sort()
    return {
        "p50_ms": 1000 * late[len(late) // 2],
        "p99_ms": 1000 * late[int(len(late) * 0.99)],
        "missing_percent": 100 * (1 - len(late) / sent),
        "mbit": goodput * 8 / 1e6,
    }


async def call(sender: DerpClient, receiver: DerpClient, to: bytes, seconds: float) -> list[float]:
    """How late each packet of a call came."""
    late: list[float] = []
    async with trio.open_nursery() as nursery:

        async def hear() -> None:
            while True:
                message = await receiver.receive()
                if isinstance(message, RecvPacket):
                    late.append(time.monotonic() - struct.unpack_from("d", message.packet)[0])

        nursery.start_soon(hear)
        begun = trio.current_time()
        for number in range(int(seconds / CALL_SECONDS)):
            await trio.sleep_until(begun + number * CALL_SECONDS)
            await sender.send(to, struct.pack("d", time.monotonic()) + bytes(CALL_BYTES - 8))
        await trio.sleep(2.0)
        nursery.cancel_scope.cancel()
    return late


async def flat_out(sender: DerpClient, receiver: DerpClient, to: bytes, seconds: float) -> float:
    """Bytes a second that come through, after a second of beginning."""
    got = 0
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await sender.send(to, bytes(FULL_BYTES))

        async def hear() -> None:
            nonlocal got
            while True:
                batch = await receiver.receive_batch()
                got += sum(len(message.packet) for message in batch if isinstance(message, RecvPacket))

        nursery.start_soon(send)
        nursery.start_soon(hear)
        await trio.sleep(1.0)
        before, begun = got, time.monotonic()
        await trio.sleep(seconds)
        rate = (got - before) / (time.monotonic() - begun)
        nursery.cancel_scope.cancel()
    return rate


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="of each measurement")
@click.option(
    "--tcp",
    default="reno",
    show_default=True,
    help="TCP's congestion control; the kernel may forbid some",
)
@click.option("--as-clients", nargs=3, type=str, hidden=True)
def main(rounds: int, seconds: float, tcp: str, as_clients: tuple[str, str, str] | None) -> None:
    """QUIC beside TCP at 0, 1 and 5 % of loss."""
    if as_clients is not None:
        carrier, pin, given = as_clients
        print(json.dumps(trio.run(clients, carrier, pin, float(given))))
        return
    path = LossyPath()
    try:
        path.open(tcp)
        with tempfile.TemporaryDirectory(prefix="bench-quic-") as folder, serve(folder) as pin:
            for loss in (0.0, 0.01, 0.05):
                path.loss = loss
                found: dict[str, list[dict[str, Any]]] = {"tls": [], "quic": []}
                for _ in range(rounds):
                    for carrier, results in found.items():
                        results.append(measure(carrier, pin, seconds))
                medians = {
                    carrier: {name: statistics.median(one[name] for one in results) for name in results[0]}
                    for carrier, results in found.items()
                }
                for carrier, row in medians.items():
                    shown = ", ".join(f"{name} {value:.1f}" for name, value in row.items())
                    print(f"{loss:4.0%} {carrier:5}: {shown}")
                tls, quic = medians["tls"], medians["quic"]
                ratios = f"p99 {quic['p99_ms'] / tls['p99_ms']:.2f}, goodput {quic['mbit'] / tls['mbit']:.2f}"
                print(f"{loss:4.0%} QUIC to TCP: {ratios}", flush=True)
    finally:
        path.close()


if __name__ == "__main__":
    main()
