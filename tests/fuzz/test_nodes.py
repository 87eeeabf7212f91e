"""Some hundred histories of two whole nodes; `python -m tests.fuzz.nodes` plays as many as one likes."""

import pytest

from tests.fuzz.nodes import play

SEEDS = 200
_PART = 20


@pytest.mark.parametrize("first", range(1, SEEDS + 1, _PART))
def test_histories(first: int) -> None:
    for seed in range(first, first + _PART):
        try:
            play(seed)
        except AssertionError as error:
            raise AssertionError(f"history {seed}: {error}") from error
