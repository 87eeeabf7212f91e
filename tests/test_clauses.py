"""The pages of docs/ that go clause by clause: every file, name and test that a row points to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A page, the room whose files its rows name, and the folder of its tests.
PAGES = {"tcp.md": "tailnet/netstack", "wireguard.md": "tailnet/wireguard", "disco.md": "tailnet/paths"}
POINTER = re.compile(r"(\w+\.(?:py|json))|`([\w./]+)`")


def problems(text: str, room: str) -> list[str]:
    """What is named in the tables of a page and is not there: a name belongs to the file before it."""
    wrong = []
    for line in text.splitlines():
        if not line.startswith("|") or ".py" not in line:
            continue
        for cell in line.split("|"):
            source = None
            for file, name in POINTER.findall(cell):
                if file:
                    path = ROOT / ("tests/" if file.startswith("test_") else "") / room / file
                    source = path.read_text() if path.exists() else None
                    if source is None:
                        wrong.append(f"no file {path.relative_to(ROOT)}")
                elif source is not None and not re.search(rf"\b{name}\b", source):
                    wrong.append(f"{name} is not in the file before it: {line}")
    return wrong


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_a_row_points_to_is_there(page: str) -> None:
    assert problems((ROOT / "docs" / page).read_text(), PAGES[page]) == []


def test_what_is_not_there_is_found() -> None:
    assert problems("| 1 | noise.py `kdf` | test_noise.py `test_nothing` |", "tailnet/wireguard")
    assert problems("| 1 | nowhere.py `kdf` |", "tailnet/wireguard")
    assert not problems("| 1 | noise.py `kdf` | test_noise.py `test_the_key_derivation` |", "tailnet/wireguard")
