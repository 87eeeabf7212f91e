"""What is wrong with a seed: gathered, each with its place, for one answer (layer L2).

Filled by seed.py, definitions.py and importing.py; ends as one SeedError.
"""

from typing import Final

from derp.json_numbers import HugeNumber
from tailnet.errors import SeedError

# A generator that is wrong is wrong everywhere: twenty mistakes say as much as twenty thousand.
MAX_PROBLEMS: Final = 20


class Problems:
    """Gathers what is wrong with one file, each line with file, place and reason."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.found: list[tuple[str, str]] = []  # (place, reason)

    def __len__(self) -> int:
        return len(self.found)

    def add(self, place: str, reason: str) -> None:
        """Raises SeedError at the twentieth."""
        self.found.append((place, reason))
        if len(self.found) == MAX_PROBLEMS:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Raises SeedError."""
        lines = [f"{self._name}: {place}: {reason}" for place, reason in self.found]
        if len(lines) == MAX_PROBLEMS:
            lines.append(f"{self._name}: there may be more: these are the first {MAX_PROBLEMS}")
        if lines:
            raise SeedError(lines)


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, HugeNumber):
        return str(value)
    if isinstance(value, bool | int | float):
        return repr(value)[:40].lower()
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
