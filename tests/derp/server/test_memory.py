"""How much memory there is: the machine's, or less in a container."""

import os
from pathlib import Path

import pytest

from derp.server.memory import memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max\n", MACHINE),
        ("104857600\n", 104857600),
        ("9223372036854771712\n", MACHINE),
        ("", MACHINE),
        ("-1", MACHINE),
    ],
)
def test_a_container_may_have_less(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(text)
    assert memory_bytes((tmp_path / "memory.max", tmp_path / "none")) == expected


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert memory_bytes((tmp_path, tmp_path / "binary")) == MACHINE


def test_a_system_that_does_not_say_has_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert memory_bytes(()) == 512 * 1024 * 1024
