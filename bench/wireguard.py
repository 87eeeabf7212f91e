"""What WireGuard costs in this language, beside the ciphers alone.

    python -m bench.wireguard            # ten seconds

Per packet of 1,280 bytes in batches: sealing and opening beside one AEAD call, which nothing in Python can go below.
Per handshake: both sides, beside the four computations on the curve of each.  Per node: memory with 4 peers, without
and with sessions.  Best of several runs: on a shared machine the rest is somebody else's time.
"""

import resource
import secrets
import timeit
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from derp.keys import NodePrivate
from tailnet.paths.core import Paths
from tailnet.paths.endpoint import Endpoint
from tailnet.wireguard.device import Device
from tailnet.wireguard.peer import Peer

PACKET = b"\x60\0\0\0" + (1240).to_bytes(2, "big") + b";\x40" + bytes(15) + b"\1" + bytes(15) + b"\2" + bytes(1240)
HERE, THERE = PACKET[8:24], PACKET[24:40]
RUNS = 20
NODES = 50
PEERS = 4


def microseconds(work: Callable[[], object], per: int = 1, count: int = 10) -> float:
    """Of one of `per` things that a call of `work` does."""
    return min(timeit.repeat(work, number=count, repeat=RUNS)) / count / per * 1e6


def make(private: NodePrivate | None = None) -> Device:
    private = private or NodePrivate.generate()
    return Device(private, random=secrets.token_bytes, now=0.0, unix_seconds=1e9)


def carry(sender: Device, receiver: Device, now: float = 0.0) -> None:
    for outgoing in sender.datagrams_to_send():
        receiver.open([outgoing.datagram], sender.public, now)


def handshake(a: Device, to_b: Peer, b: Device, now: float) -> None:
    a.begin_session(to_b, now)
    carry(a, b, now)
    carry(b, a, now)
    carry(a, b, now)


def packets(batch: int) -> None:
    a, b = make(), make()
    to_b, _ = a.configure(b.public, [THERE], 0.0), b.configure(a.public, [HERE], 0.0)
    handshake(a, to_b, b, 0.0)
    plain = [PACKET] * batch
    encrypt, decrypt = ChaCha20Poly1305(bytes(32)).encrypt, ChaCha20Poly1305(bytes(32)).decrypt
    nonces = [bytes(4) + number.to_bytes(8, "little") for number in range(batch)]
    texts = [encrypt(nonce, PACKET, None) for nonce in nonces]
    floor_seal = microseconds(lambda: [encrypt(nonce, PACKET, None) for nonce in nonces], batch)
    floor_open = microseconds(
        lambda: [decrypt(nonce, text, None) for nonce, text in zip(nonces, texts, strict=True)], batch
    )
    seal = microseconds(lambda: a.seal(to_b, plain, 1.0), batch)
    batches = iter([a.seal(to_b, plain, 1.0) for _ in range(RUNS)])  # each can be opened once
    opened = microseconds(lambda: b.open(next(batches), b"", 1.0), batch, count=1)
    print(
        f"batch of {batch:3}: seal {seal:.2f} us (AEAD {floor_seal:.2f}), open {opened:.2f} us (AEAD {floor_open:.2f})"
    )


def handshakes() -> None:
    a, b = make(), make()
    to_b = a.configure(b.public, [THERE], 0.0)
    b.configure(a.public, [HERE], 0.0)
    now = [0.0]

    def one() -> None:
        now[0] += 200.0  # old enough for the next
        handshake(a, to_b, b, now[0])

    one_way, ours = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
    curve = microseconds(lambda: one_way.exchange(ours))
    print(f"handshake: {microseconds(one) / 2:.0f} us a side (four computations on the curve are {4 * curve:.0f} us)")
    stranger = make()
    stranger.begin_session(stranger.configure(b.public, [], 0.0), 0.0)
    message = stranger.datagrams_to_send()[0].datagram
    b.open([message] * 300, b"flood", now[0])

    def refuse() -> None:
        b.open([message], secrets.token_bytes(6), now[0])
        b.datagrams_to_send()

    print(f"under load: {microseconds(refuse, count=100):.1f} us for an initiation that gets a cookie")
    print(f"a datagram of nobody: {microseconds(lambda: b.open([bytes(148)], b'', 0.0)):.2f} us")


def make_nodes() -> tuple[list[Device], list[Paths]]:
    """Each knows PEERS others on either side, as six endpoints."""
    devices = [make() for _ in range(NODES)]
    paths = [Paths(each.public, secrets.token_bytes(32), random=secrets.token_bytes, now=0.0) for each in devices]
    for number, device in enumerate(devices):
        for step in (*range(1, PEERS + 1), *range(NODES - PEERS, NODES)):
            other = (number + step) % NODES
            device.configure(devices[other].public, [secrets.token_bytes(16)], 0.0)
            endpoints = [Endpoint("203.0.113.1", port) for port in range(1, 7)]
            paths[number].configure(devices[other].public, paths[other].disco_key, endpoints, 1, 0.0)
    return devices, paths


def connect(devices: list[Device]) -> None:
    for number, device in enumerate(devices):
        for step in range(1, PEERS + 1):
            other = devices[(number + step) % NODES]
            to_other = device.find(other.public)
            assert to_other is not None
            handshake(device, to_other, other, 0.0)


def memory() -> None:
    before = _resident()
    nodes = make_nodes()
    connect(nodes[0])
    resident = _resident() - before
    tracemalloc.start()
    more = make_nodes()
    idle = tracemalloc.get_traced_memory()[0]
    connect(more[0])
    busy = tracemalloc.get_traced_memory()[0]
    print(
        f"{2 * PEERS} peers: {idle / NODES / 1024:.0f} KiB of Python a node, with sessions {busy / NODES / 1024:.0f}; "
        f"resident, with what libraries keep, {resident / NODES / 1024:.0f}"
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    for size in (1, 16, 44, 128):
        packets(size)
    handshakes()
    memory()
