"""What HTTP connections of the API cost a coordinator in memory: many that stay and say nothing, many one by one.

For a test and for bench/coordinator.py; Linux, as the resident size is read from /proc.
"""

import contextlib
import socket
from pathlib import Path
from urllib.parse import urlsplit

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: tailnet.test\r\n\r\n"
# A server whose memory is measured runs without the measuring of coverage, which takes a quarter on top.
UNMEASURED = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
# Above what a loaded machine takes for one answer.
PATIENCE_SECONDS = 60.0


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def connect(url: str) -> socket.socket:
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    return socket.create_connection((where.hostname, where.port), timeout=PATIENCE_SECONDS)


def ask(sock: socket.socket) -> None:
    """One request, and its whole answer; the connection stays."""
    sock.sendall(REQUEST)
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = sock.recv(65536)
        assert chunk, f"the server hung up after {received!r}"
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(lines[b"content-length"]):
        body += sock.recv(65536)


def warm_up(url: str) -> None:
    """Let the server load, compile and allocate what the first requests of a process need."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            ask(stack.enter_context(connect(url)))


def idle_bytes(url: str, pid: int, count: int) -> float:
    """What the server grows by per connection that asked once and stays."""
    with contextlib.ExitStack() as stack:
        before = resident_bytes(pid)
        for _ in range(count):
            ask(stack.enter_context(connect(url)))
        return (resident_bytes(pid) - before) / count


def follow(sock: socket.socket, path: str, token: str) -> None:
    """Ask for a stream of events, and read its head and its first event; the stream goes on."""
    head = (f"GET {path} HTTP/1.1", "Host: tailnet.test", "Accept: text/event-stream", f"Coder-Session-Token: {token}")
    sock.sendall("\r\n".join((*head, "", "")).encode())
    received = b""
    while b"event: data" not in received:
        chunk = sock.recv(65536)
        assert chunk, f"the server hung up after {received!r}"
        received += chunk
    assert received.startswith(b"HTTP/1.1 200"), received


def follower_bytes(url: str, pid: int, path: str, token: str, count: int) -> float:
    """What the server grows by per follower of a stream of events."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):  # what the first ones of a process need
            follow(stack.enter_context(connect(url)), path, token)
        before = resident_bytes(pid)
        for _ in range(count):
            follow(stack.enter_context(connect(url)), path, token)
        return (resident_bytes(pid) - before) / count


def growth_bytes(url: str, pid: int, count: int) -> int:
    """What the server grows by while `count` connections come, ask and go, one after the other."""
    before = resident_bytes(pid)
    for _ in range(count):
        with connect(url) as sock:
            ask(sock)
    return resident_bytes(pid) - before
