"""How a target is tried, whatever it is of: its seeds, changed ones, any bytes; and whether it can find something.

A target takes bytes and returns; every exception is a find.  Tables of them are `TARGETS` in derp_targets.py,
netstack_targets.py and agent_targets.py: a name, the target, and inputs worth changing.  test_targets.py runs them all.
"""

import random
from collections.abc import Callable
from typing import Final, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Target: TypeAlias = Callable[[bytes], None]

_INTERESTING: Final = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x00\x20",
    b"\x00\x10\x00\x01",
    b"\xff\xff\xff\xff",
)


def mutate(numbers: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few changes; the same numbers give the same bytes."""
    data = bytearray(numbers.choice(seeds))
    for _ in range(numbers.choice((0, 1, 1, 2, 3, 8))):
        at = numbers.randrange(len(data) + 1)
        match numbers.randrange(6):
            case 0:
                data[at:at] = numbers.choice(_INTERESTING)
            case 1:
                del data[at : at + numbers.choice((1, 1, 2, 5, 40))]
            case 2 if at < len(data):
                data[at] ^= 1 << numbers.randrange(8)
            case 3:
                value = numbers.choice(_INTERESTING)
                data[at : at + len(value)] = value
            case 4:
                data += numbers.choice(seeds)
            case _:
                data[at:at] = numbers.randbytes(numbers.choice((1, 2, 4, 30)))
    return bytes(data)


def try_seeds(target: Target, seeds: list[bytes]) -> None:
    for seed in seeds:
        target(seed)


def try_changed_seeds(target: Target, seeds: list[bytes], count: int, name: str) -> None:
    """`name` gives the numbers: the same ones on every machine."""
    numbers = random.Random(name)
    for _ in range(count):
        target(mutate(numbers, seeds))


def try_any_bytes(target: Target, seeds: list[bytes], count: int) -> None:
    """Any bytes, alone or behind a seed."""

    @settings(derandomize=True, max_examples=count, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(st.binary(max_size=200), st.sampled_from(seeds).flatmap(lambda s: st.binary().map(s.__add__))))
    def run(data: bytes) -> None:
        target(data)

    run()


def finds(target: Target, seeds: list[bytes], count: int) -> bool:
    """Whether so many changed seeds show the fault that a test has planted."""
    numbers = random.Random(1)
    for _ in range(count):
        try:
            target(mutate(numbers, seeds))
        except Exception:
            return True
    return False
