"""A short run of every target of an agent's parsers, the same on every machine; a longer one: more MUTATIONS."""

import re

import pytest

from tailnet.agent import pty_frames
from tests.fuzz import laws
from tests.fuzz.agent_targets import TARGETS

EXAMPLES = 100
MUTATIONS = 500


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_obey_the_law(name: str) -> None:
    laws.try_seeds(*TARGETS[name])


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds_obey_the_law(name: str) -> None:
    laws.try_changed_seeds(*TARGETS[name], MUTATIONS, name)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_obey_the_law(name: str) -> None:
    laws.try_any_bytes(*TARGETS[name], EXAMPLES)


# --- the targets can find something ---


def finds(name: str) -> bool:
    return laws.finds(*TARGETS[name], 2000)


def test_a_cut_behind_a_backslash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty_frames, "_IN_STRING", re.compile(rb'(?:[^"\\]++|\\(?:.|$))*+', re.DOTALL))
    assert finds("pty_pieces")


def test_half_characters_that_are_kept_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty_frames, "without_halves", lambda text: text)
    assert finds("pty")
