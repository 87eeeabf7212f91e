"""A short run of every target, the same on every machine; a longer one: more of them, or python -m tests.fuzz.derp."""

from typing import Final

import pytest

from tests.fuzz import agent_targets, derp_targets, laws, netstack_targets

# Examples and mutations of each target: what makes the whole file take some seconds.
RUNS: Final = (
    (derp_targets.TARGETS, 150, 400),
    (netstack_targets.TARGETS, 100, 250),
    (agent_targets.TARGETS, 100, 500),
)
ALL: Final = [
    pytest.param(name, *target, examples, mutations, id=name)
    for targets, examples, mutations in RUNS
    for name, target in targets.items()
]


@pytest.mark.parametrize(("name", "target", "seeds", "examples", "mutations"), ALL)
def test_the_law_is_obeyed(name: str, target: laws.Target, seeds: list[bytes], examples: int, mutations: int) -> None:
    laws.try_seeds(target, seeds)
    laws.try_changed_seeds(target, seeds, mutations, name)
    laws.try_any_bytes(target, seeds, examples)
