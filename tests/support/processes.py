"""Processes of others, as the kernel shows them.  No pytest here: bench/ looks at the same ones."""

from pathlib import Path


def children(pid: int | str = "self") -> list[int]:
    """Processes that it has started, whichever of its threads did, and that have not been waited for."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted(int(text) for each in lists for text in each)
