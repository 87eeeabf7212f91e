"""The targets of an agent's parsers can find something; test_targets.py runs them."""

import re

import pytest

from tailnet.agent import pty_frames
from tests.fuzz import laws
from tests.fuzz.agent_targets import TARGETS


def finds(name: str) -> bool:
    return laws.finds(*TARGETS[name], 2000)


def test_a_cut_behind_a_backslash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty_frames, "_IN_STRING", re.compile(rb'(?:[^"\\]++|\\(?:.|$))*+', re.DOTALL))
    assert finds("pty_pieces")


def test_half_characters_that_are_kept_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pty_frames, "without_halves", lambda text: text)
    assert finds("pty")
