"""What bench/api.py lays on a server, each as a process of its own: requests, followers of logs, agents that print.

    python bench/api_generators.py requests URL PATH TOKEN SECONDS
Each prints one JSON object when it is done.
"""

import json
import selectors
import socket
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tailnet.proto.generated import agent_pb2 as agent
from tailnet.server.server import CoordinatorServer
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, Peer, open_peer

# As many as a busy dashboard has at once: more only wait in line, and p99 would be theirs.
CONNECTIONS = 16
LINE = "x" * 72
BATCH_LINES = 250
FOLLOWED_LINES = 2_000


def connect(url: str) -> socket.socket:
    where = urlsplit(url)
    made = socket.create_connection((where.hostname or "", where.port or 0), timeout=60)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def requests(url: str, path: str, token: str, seconds: float) -> dict[str, float]:
    """GET again and again on some connections that stay; a second of it is not counted."""
    head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nCoder-Session-Token: {token}\r\n\r\n".encode()
    begun_at: dict[socket.socket, float] = {}
    received: dict[socket.socket, bytes] = {}
    took: list[float] = []
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        for _ in range(CONNECTIONS):
            each = connect(url)
            selector.register(each, selectors.EVENT_READ)
            each.sendall(head)
            begun_at[each], received[each] = time.perf_counter(), b""
        while (now := time.perf_counter()) < started + 1.0 + seconds:
            for key, _ in selector.select(5.0):
                each = cast(socket.socket, key.fileobj)
                received[each] += each.recv(65536)
                if not is_whole(received[each]):
                    continue
                now = time.perf_counter()
                if now > started + 1.0:
                    took.append(now - begun_at[each])
                received[each], begun_at[each] = b"", now
                each.sendall(head)
    took.sort()
    return {
        "per_second": len(took) / seconds,
        "p50_ms": 1e3 * took[len(took) // 2],
        "p99_ms": 1e3 * took[len(took) * 99 // 100],
    }


def is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    assert head.startswith(b"HTTP/1.1 200"), answer
    if b"chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) >= int(length.split(b":")[1])


def follow(url: str, path: str, token: str, followers: int, agent_token: str) -> dict[str, float]:
    """Many follow an agent's logs while it prints: what they got, and how long after the last report all have all."""
    key = "AAAAAAAAAAAAAAAAAAAAAA=="
    upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
    head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nCoder-Session-Token: {token}\r\n{upgrade}\r\n\r\n".encode()
    selector = selectors.DefaultSelector()
    streams: dict[socket.socket, bytearray] = {}
    lines: dict[socket.socket, list[int]] = {}
    for _ in range(followers):
        each = connect(url)
        each.sendall(head)
        streams[each], lines[each] = bytearray(each.recv(65536)), []
        assert streams[each].startswith(b"HTTP/1.1 101"), bytes(streams[each])
        del streams[each][: streams[each].index(b"\r\n\r\n") + 4]
        selector.register(each, selectors.EVENT_READ)
    printer = print_lines(url, agent_token)
    printed, left, waited_until = next(printer), set(streams), time.perf_counter() + 120
    last_at = 0.0
    while left and time.perf_counter() < waited_until:
        if printed < FOLLOWED_LINES:
            printed = next(printer)
            last_at = time.perf_counter()
        for found, _ in selector.select(0.0 if printed < FOLLOWED_LINES else 1.0):
            each = cast(socket.socket, found.fileobj)
            streams[each] += each.recv(1 << 20)
            for message in messages(streams[each]):
                lines[each] += [int(line["output"]) for line in json.loads(message)]
            if len(lines[each]) >= FOLLOWED_LINES:
                left.discard(each)
    wanted = list(range(FOLLOWED_LINES))
    lost = sum(FOLLOWED_LINES - len(set(found)) for found in lines.values())
    return {
        "lost": lost,
        "disordered": sum(found != wanted[: len(found)] for found in lines.values()),
        "behind_seconds": time.perf_counter() - last_at,
    }


def print_lines(url: str, token: str) -> Any:
    """One report of an agent's lines after the other, over HTTP; gives how many were printed."""
    connection = connect(url)
    for batch in count():
        numbers = range(batch * 50, batch * 50 + 50)
        body = json.dumps({"logs": [{"output": str(number)} for number in numbers]}).encode()
        head = f"PATCH /api/v2/workspaceagents/me/logs HTTP/1.1\r\nHost: bench\r\nCoder-Session-Token: {token}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while not is_whole(answer):
            answer += connection.recv(65536)
        yield batch * 50 + 50


def messages(stream: bytearray) -> Any:
    """Take whole messages of text off a stream of a server's frames."""
    while len(stream) >= 2:
        size, at = stream[1] & 127, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(stream) < 2 + width:
                return
            size, at = int.from_bytes(stream[2 : 2 + width], "big"), 2 + width
        if len(stream) < at + size:
            return
        kind, payload = stream[0] & 15, bytes(stream[at : at + size])
        del stream[: at + size]
        if kind == 1:
            yield payload


async def write_logs(url: str, tokens: list[str], per_second: int) -> dict[str, float]:
    """Agents that print so many lines a second, together, over their RPC connections, until standard input ends."""
    where = urlsplit(url)
    server = cast(CoordinatorServer, SimpleNamespace(listening=[SimpleNamespace(host=where.hostname, port=where.port)]))
    sent = 0
    request = agent.BatchCreateLogsRequest(logs=[agent.Log(output=LINE)] * BATCH_LINES)
    peers: list[Peer] = []
    async with trio.open_nursery() as nursery:

        async def hold(token: str, task_status: trio.TaskStatus[Peer]) -> None:
            async with open_peer(server, AGENT_DOOR, token) as peer:
                task_status.started(peer)
                await trio.sleep_forever()

        async def end() -> None:
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()

        for token in tokens:
            peers.append(await nursery.start(hold, token))
        print("running", file=sys.stderr, flush=True)
        nursery.start_soon(end)
        begun = trio.current_time()
        for number in count():
            await trio.sleep_until(begun + number * BATCH_LINES / per_second)
            answer = await peers[number % len(peers)].call(
                AGENT + "BatchCreateLogs", request, agent.BatchCreateLogsResponse
            )
            assert not answer.log_limit_exceeded, "an agent has printed its megabyte"
            sent += BATCH_LINES
            seconds = trio.current_time() - begun
    return {"lines": sent, "per_second": sent / seconds}


def main(what: str, url: str, *more: str) -> None:
    match what:
        case "requests":
            result = requests(url, more[0], more[1], float(more[2]))
        case "follow":
            result = follow(url, more[0], more[1], int(more[2]), more[3])
        case "write":
            result = trio.run(write_logs, url, Path(more[0]).read_text().split(), int(more[1]))
        case _:
            raise SystemExit(f"no generator is called {what}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
