"""Fuzz one DERP target for as long as you like: `python -m tests.fuzz.derp websocket --seconds 600`.

With atheris installed it is guided by coverage; without, seeds of genuine frames are changed at random.  A find is
printed as hex; `--input <hex>` runs it again, and it belongs into the tests of the module then.
"""

import argparse
import importlib
import itertools
import random
import sys
import time
from typing import Any

from tests.fuzz.derp_targets import TARGETS
from tests.fuzz.laws import Target, mutate


def run_atheris(target: Target, seconds: float) -> bool:
    """False: atheris is not installed."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        return False
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}"], target)
    atheris.Fuzz()
    return True


def run_plain(target: Target, seeds: list[bytes], seconds: float, seed: int) -> int:
    """How many inputs were tried.  The first find is printed and raised."""
    numbers, deadline = random.Random(seed), time.monotonic() + seconds
    for count in itertools.count():
        if count % 100 == 0 and time.monotonic() > deadline:
            return count
        data = mutate(numbers, seeds)
        try:
            target(data)
        except Exception:
            print(f"--input {data.hex()}", file=sys.stderr)
            raise
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz a DERP core.")
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the plain run's numbers")
    parser.add_argument("--input", type=bytes.fromhex, help="run this one input, in hex")
    parser.add_argument("--plain", action="store_true", help="do not look for atheris")
    chosen = parser.parse_args()
    for name in TARGETS if chosen.target == "all" else [chosen.target]:
        target, seeds = TARGETS[name]
        if chosen.input is not None:
            target(chosen.input)
        elif chosen.plain or not run_atheris(target, chosen.seconds):
            count = run_plain(target, seeds, chosen.seconds, chosen.seed)
            print(f"{name}: {count} inputs, no find")


if __name__ == "__main__":
    main()
