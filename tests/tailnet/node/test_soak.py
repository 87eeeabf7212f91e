"""Twenty minutes between two nodes, in virtual time: keys change ten times, nothing stalls, and nothing is left behind.

The long form has a genuine node, a relay and a real clock: `python bench/node.py --soak 30`.
"""

import gc
import sys
import tracemalloc

import pytest

from tests.tailnet.node.test_core import Link

MINUTES = 20
LONGEST_SECONDS = 1.0
# Of the test's own list some 40 bytes a minute; a segment that stayed, or a key pair, is more than a KiB.
GROWN_BYTES = 3 * 1024
# Some key pairs stay when they are replaced, each two minutes: from here on there are as many as there may be.
STEADY_MINUTE = 11


def held_bytes() -> int:
    """What is traced and in use.

    CPython 3.11 caches attributes of types by the address of their name, and each class pattern of a `match` looks one
    up by a new string: up to 4,096 copies of `__match_args__`, of 63 bytes, would count as ours.
    """
    gc.collect()
    sys._clear_type_cache()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("is_direct", [False, True])
def test_requests_of_twenty_minutes(is_direct: bool) -> None:
    link = Link(is_direct=is_direct)
    listener = link.b.core.stack.listen(80)
    connection = link.a.core.stack.connect(link.b.addresses[0], 80)
    link.until(lambda: bool(listener.queue))
    accepted = listener.accept()
    assert accepted is not None
    came = bytearray()

    def moved() -> bool:
        accepted.send(accepted.receive(65536))
        came.extend(connection.receive(65536))
        return len(came) == len(asked)

    tracemalloc.start()
    try:
        held = [0]
        longest = 0.0
        for minute in range(MINUTES):
            for second in range(60):
                asked = bytes((minute, second)) * 3000
                came.clear()
                began = link.now
                assert connection.send(asked) == len(asked)
                link.until(moved)
                assert came == asked
                longest = max(longest, link.now - began)
                link.rest(began + 1)
            link.a.events.clear()
            link.b.events.clear()
            held.append(held_bytes())
    finally:
        tracemalloc.stop()
    assert longest < LONGEST_SECONDS
    assert link.a.core.device.counters.initiations_sent + link.b.core.device.counters.initiations_sent >= MINUTES // 2
    assert max(held[STEADY_MINUTE:]) - min(held[STEADY_MINUTE:]) < GROWN_BYTES, held
