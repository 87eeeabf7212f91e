"""What a segment costs in the node's TCP, both ways, beside the floor: `python bench/netstack.py` (ten seconds).

Two stacks hand each other their packets in memory, no clock in between: a stream of 1,220-byte segments from one to the
other, with an acknowledgement for each batch.  The floor is what the bytes alone cost: cutting, one sum, one header,
one join on the way out; one look-up, one copy, one join on the way in.  With `--kernel` (root, a minute or two): rates
under delay and loss beside the kernel's CUBIC with itself on the same emulated way.
"""

import argparse
import json
import os
import random
import select
import socket
import statistics
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tailnet.netstack.limits import Limits
from tailnet.netstack.stack import Stack
from tests.support.kernel_peer import KernelPeer, missing
from tests.support.netsim import ADDRESSES
from tests.support.netstack_driver import Driver, Impaired, Way
from tests.support.netstack_services import get, put

SEGMENT = 1220
ROUNDS = 5
OURS, THEIRS = ADDRESSES
TEXT = [socket.inet_ntop(socket.AF_INET6, address) for address in ADDRESSES]
WAYS = [(0.0, 0.0), (0.010, 0.0), (0.025, 0.0), (0.010, 0.005), (0.010, 0.01), (0.025, 0.005), (0.025, 0.01)]


def measure(total: int, *, verify: bool, burst: int = 44) -> tuple[float, float, float]:
    """us of CPU a segment: of the sender's packets, of the receiver's, of the sender for acknowledgements."""
    limits = Limits(verify_checksums=verify)
    stacks = [Stack([address], os.urandom, 0.0, limits) for address in ADDRESSES]
    sender, receiver = stacks
    listener = receiver.listen(80)
    source = sender.connect(THEIRS, 80)
    now, target = 0.0, None
    while target is None:
        now += 0.001
        receiver.receive_packets(sender.packets_to_send(now), now)
        sender.receive_packets(receiver.packets_to_send(now), now)
        target = listener.accept()
    sender.set_burst(THEIRS, burst)
    data, left = bytes(SEGMENT * 54), total
    took = [0.0, 0.0, 0.0]
    clock = time.thread_time
    while left > 0:
        now += 0.001
        began = clock()
        while left > 0 and (size := source.send(data)):
            left -= size
        packets = sender.packets_to_send(now)
        first = clock()
        receiver.receive_packets(packets, now)
        while target.receive(1 << 20):
            pass
        acknowledgements = receiver.packets_to_send(now)
        third = clock()
        sender.receive_packets(acknowledgements, now)
        took[0] += first - began
        took[1] += third - first
        took[2] += clock() - third
    count = total / SEGMENT
    return took[0] / count * 1e6, took[1] / count * 1e6, took[2] / count * 1e6


def floor(total: int) -> tuple[float, float]:
    """us a segment for the bytes alone, out and in."""
    chunk, header = memoryview(bytes(SEGMENT * 54)), struct.Struct("!IHBB36sIIHHHH")
    unpack, flow = struct.Struct("!BxxxHB37xIIHH").unpack_from, bytes(36)
    count = total // SEGMENT
    began = time.thread_time()
    packets = []
    for number in range(count):
        at = number % 54 * SEGMENT
        payload = bytes(chunk[at : at + SEGMENT])
        third = SEGMENT // 6 * 2
        total_sum = (
            int.from_bytes(payload[:third], "big")
            + int.from_bytes(payload[third : 2 * third], "big")
            + int.from_bytes(payload[2 * third :], "big")
        ) % 65535
        packets.append(header.pack(0x60000000, 1240, 6, 64, flow, number, 1, 0x5010, 1000, total_sum, 0) + payload)
    middle = time.thread_time()
    table, taken, chunks = {flow: 1}, 0, []
    for packet in packets:
        unpack(packet)
        taken += table.get(bytes(packet[8:44]), 0)
        chunks.append(bytes(packet[60:]))
        if len(chunks) == 44:
            b"".join(chunks)
            chunks.clear()
    end = time.thread_time()
    return (middle - began) / count * 1e6, (end - middle) / count * 1e6


def costs() -> None:
    total = 20_000 * SEGMENT
    rows = {"out": [], "in, sums checked": [], "in, sums not checked": [], "acknowledgements": []}
    floors = []
    for _ in range(ROUNDS):  # interleaved, so that whatever else the machine does hits all alike
        out, checked, acknowledged = measure(total, verify=True)
        _, unchecked, _ = measure(total, verify=False)
        floors.append(floor(total))
        for name, value in zip(rows, (out, checked, unchecked, acknowledged), strict=True):
            rows[name].append(value)
    print("us of CPU a segment of 1,220 bytes, best and median of", ROUNDS)
    for name, values in rows.items():
        print(f"  {name:22} {min(values):5.2f} {statistics.median(values):5.2f}")
    print(f"  floor out {min(each[0] for each in floors):.2f}, in {min(each[1] for each in floors):.2f}")


def pump(one: KernelPeer, other: KernelPeer, there: Way, back: Way, line: str, seed: int) -> float:
    """The kernel with itself: carry packets between two devices.  Seconds that it took."""
    chance = random.Random(seed)
    ways = {one.tun: (Impaired(there, chance), other.tun), other.tun: (Impaired(back, chance), one.tun)}
    poll = select.poll()
    for descriptor in (*ways, one.output):
        poll.register(descriptor, select.POLLIN)
    one.ask(line)
    said, end = b"", time.monotonic() + 120
    while b"\n" not in said and time.monotonic() < end:
        due = [at for way, _ in ways.values() if (at := way.next_at()) is not None]
        for descriptor, _ in poll.poll(max(min(due, default=end) - time.monotonic(), 0) * 1000):
            if descriptor == one.output:
                said += os.read(descriptor, 65536)
                continue
            packets: list[bytes] = []
            try:
                while len(packets) < 256:
                    packets.append(os.read(descriptor, 2048))
            except BlockingIOError:
                pass
            ways[descriptor][0].put(packets, time.monotonic())
        for way, target in ways.values():
            for packet in way.take(time.monotonic()):
                os.write(target, packet)
    answer = json.loads(said)
    assert answer["ok"], answer
    return float(answer["seconds"])


def rates(rounds: int) -> None:
    if reason := missing():
        raise SystemExit(f"--kernel {reason}")
    peer, reference = KernelPeer(TEXT[1], TEXT[0], "cubic"), KernelPeer(TEXT[0], TEXT[1], "cubic")
    print("Mbit/s of", rounds, "transfers: kernel to kernel, ours to kernel, kernel to ours; ratios of the last two")
    for delay, loss in WAYS:
        size = 10_000_000 if not loss else 1_500_000
        times = [0.0, 0.0, 0.0]
        for seed in range(rounds):
            lossy, clean = Way(delay, loss), Way(delay)
            times[0] += pump(reference, peer, lossy, clean, f"put 9 {size}", seed)
            driver = Driver(OURS, peer.tun, out=lossy, back=clean, seed=seed)
            driver.stack.set_burst(THEIRS, 44)
            times[1] += put(driver, THEIRS, size, 120)
            times[2] += get(Driver(OURS, peer.tun, out=clean, back=lossy, seed=seed), THEIRS, size, 120)
        kernel, ours, theirs = (rounds * size * 8 / seconds / 1e6 for seconds in times)
        print(
            f"  {delay * 1000:4.0f} ms {loss * 100:4.1f} %  {kernel:6.1f} {ours:6.1f} {theirs:6.1f}"
            f"   {ours / kernel:.2f} {theirs / kernel:.2f}",
            flush=True,
        )
    peer.close()
    reference.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="store_true", help="rates beside the kernel's CUBIC, too")
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()
    costs()
    if chosen.kernel:
        rates(chosen.rounds)


if __name__ == "__main__":
    main()
