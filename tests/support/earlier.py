"""The program as it was before: vectors/earlier.tar.xz holds the files of a wheel of an earlier commit.

python -m tests.support.earlier COMMIT     makes it anew; where replicas still understand those of that commit
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

from tests.support.gobuild import ROOT

FILES = ROOT / "tests" / "vectors" / "earlier.tar.xz"
# Python 3.11.2, which Debian 12 has, knows no filters; both archives are our own.
_FILTER: Final[dict[str, Any]] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(folder: Path) -> Path:
    """The earlier program's files.  With them in PYTHONPATH, and elsewhere, `-m tailnet` is that one."""
    with tarfile.open(FILES) as packed:
        packed.extractall(folder, **_FILTER)
    return folder


def pack(commit: str) -> None:
    """Build the wheel of a commit, and keep its files: so packed they take half of what a wheel takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as source:
            source.extractall(folder / "source", **_FILTER)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*build, "--wheel-dir", name, str(folder / "source")], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as files, tarfile.open(FILES, "w:xz") as packed:
            for each in sorted(files.namelist()):
                content = files.read(each)
                entry = tarfile.TarInfo(each)
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    pack(sys.argv[1])
