"""`python -m sim --seeds 0..10000`: play schedules; of one that breaks a law a short story is printed.

`--mutations` plays them without each of our rules instead, until one notices.
"""

import argparse
import gc
import sys
import time
from collections import Counter
from typing import Final

from sim.mutations import MUTATIONS
from sim.plan import make_plan
from sim.play import play, shrink
from sim.relay_mutations import RELAY_MUTATIONS

# A world is one large cycle, and garbage when its schedule is over: to look for it at the default of each 700 new
# objects takes a twentieth of the time, and finds nothing.  So it waits until there are some ten, 10 MB.
OBJECTS_A_COLLECTION: Final = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sim", description="Play schedules of faults against the cores.")
    parser.add_argument("--seeds", default="0..1000", help="the numbers of the schedules: A..B, or one")
    parser.add_argument("--story", action="store_true", help="print the whole of each, broken or not")
    parser.add_argument(
        "--mutations", metavar="WORDS", nargs="?", const="", help="which schedule notices each rule taken away, or some"
    )
    chosen = parser.parse_args()
    gc.set_threshold(OBJECTS_A_COLLECTION)
    first, _, last = chosen.seeds.partition("..")
    seeds = range(int(first), int(last or int(first) + 1))
    return play_all(seeds, chosen.story) if chosen.mutations is None else find(seeds, chosen.mutations)


def play_all(seeds: range, is_told: bool) -> int:
    began, events, broken = time.process_time(), 0, 0
    met: Counter[str] = Counter()
    for seed in seeds:
        played = play(make_plan(seed), is_told)
        events += played.event_count
        met.update(played.met)
        if is_told:
            print("\n".join(played.story))
        if played.broken is not None:
            broken += 1
            short = shrink(make_plan(seed))
            print(f"seed {seed}: {played.broken}", *short.story, sep="\n", flush=True)
    seconds = time.process_time() - began
    print(f"{events} events in {seconds:.1f} s of CPU, {events / max(seconds, 1e-9):.0f}/s; {broken} broken")
    print(", ".join(f"{name} {count}" for name, count in sorted(met.items())))
    return 1 if broken else 0


def find(seeds: range, words: str) -> int:
    unnoticed = 0
    for name, mutation in (MUTATIONS | RELAY_MUTATIONS).items():
        if words in name:
            with mutation.taken_away():
                noticed = next((seed for seed in seeds if mutation.is_noticed(play(make_plan(seed)).broken)), None)
            unnoticed += noticed is None
            print(f"{name}: {noticed}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
