"""The programs as they were before: vectors/earlier.tar.xz holds the files of wheels of earlier commits.

python -m tests.support.earlier COMMIT ...    makes it anew; where replicas still understand those of these commits

In one archive the files that two of them share are packed once.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.gobuild import ROOT

OLDEST: Final = "4f456c85"  # the first that has every kind of bus
LAST: Final = "9020d91c"
FILES: Final = ROOT / "tests" / "vectors" / "earlier.tar.xz"
# Python 3.11.2, which Debian 12 has, knows no filters; both archives are our own.
_FILTER: Final[dict[str, Any]] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(folder: Path) -> None:
    """Each program's files, in a folder of its commit's name.  With that in PYTHONPATH, and elsewhere, `-m tailnet` is
    that program."""
    with tarfile.open(FILES) as packed:
        packed.extractall(folder, **_FILTER)


def pack(commits: Sequence[str]) -> None:
    """Build the wheel of each commit, and keep its files: so packed they take half of what wheels take."""
    contents: dict[tuple[str, str], bytes] = {}
    for commit in commits:
        with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(_build(commit, Path(name))) as files:
            contents |= {(each, commit): files.read(each) for each in files.namelist()}
    with tarfile.open(FILES, "w:xz", preset=9) as packed:  # whose window holds all of them
        for (path, commit), content in sorted(contents.items()):
            entry = tarfile.TarInfo(f"{commit}/{path}")
            entry.size = len(content)
            packed.addfile(entry, io.BytesIO(content))


def _build(commit: str, folder: Path) -> Path:
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as source:
        source.extractall(folder / "source", **_FILTER)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    pack(sys.argv[1:])
