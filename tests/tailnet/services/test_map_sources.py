"""Files are read when they change, however they change; URLs as transport/test_fetch.py shows."""

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tailnet.services import map_sources
from tailnet.services.map_sources import FileSource, SourceFailed, UrlSource
from tests.support.sites import Site, answer


def write(path: Path, text: bytes, mtime_ns: int | None = None) -> int:
    """Write a file, with a given time if one is given; returns its time."""
    path.write_bytes(text)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return path.stat().st_mtime_ns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "map.json"
    made.write_bytes(b"one")
    return made


async def test_a_file_is_read_once(path: Path) -> None:
    source = FileSource(path)
    assert await source.read() == b"one"
    assert await source.read() is None
    assert await source.read(force=True) == b"one"


async def test_a_file_that_is_written_again(path: Path) -> None:
    source = FileSource(path)
    await source.read()
    time = write(path, b"longer")
    assert await source.read() == b"longer"
    # The same size, only the time tells.
    write(path, b"LONGER", time + 1)
    assert await source.read() == b"LONGER"


async def test_a_file_that_is_replaced_with_the_same_time_and_size(path: Path, tmp_path: Path) -> None:
    source = FileSource(path)
    time = write(path, b"one")
    await source.read()
    other = tmp_path / "new"
    write(other, b"two", time)
    other.replace(path)
    assert await source.read() == b"two"


async def test_a_file_that_goes_and_comes_back_unchanged(path: Path, tmp_path: Path) -> None:
    source = FileSource(path)
    await source.read()
    os.rename(path, tmp_path / "away")
    with pytest.raises(SourceFailed, match="No such file"):
        await source.read()
    (tmp_path / "away").rename(path)
    assert await source.read() == b"one"


async def test_a_file_that_is_far_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_sources, "MAX_MAP_BYTES", 2)
    with pytest.raises(SourceFailed, match="is it the right file"):
        await FileSource(path).read()


async def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceFailed, match="cannot be read: Is a directory"):
        await FileSource(tmp_path).read()


async def test_a_url(nursery: trio.Nursery) -> None:
    site = Site()
    await nursery.start(site.serve)
    site.respond = lambda head: answer(b"{}")
    source = UrlSource(site.url.replace("http://", "http://user:secret@"))
    assert source.name == site.url.replace("://", "://<secret>@")
    async with AsyncExitStack() as stack:
        await source.open(stack)
        assert await source.read() == b"{}"
        site.respond = lambda head: answer(b"", status="503 Busy")
        with pytest.raises(SourceFailed, match="answers 503 Busy"):
            await source.read()
