"""The log of decisions as a file: over restarts, full files, disks that take nothing, and two writers."""

import resource
import stat
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from derp.admission.chain import check
from derp.errors import ConfigError, ConnectError
from derp.keys import NodePrivate
from derp.server import decisions
from derp.server.decisions import OLD_FILES, DecisionLog
from derp.text import without_secrets
from tests.derp.server.world import call, open_server, relay_config

KEY = b"k" * 32


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def opened(path: Path) -> DecisionLog:
    log = DecisionLog(path, clock=lambda: 1_800_000_000.0)
    log.open()
    return log


def test_the_chain_goes_on_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(3):
        log = opened(path)
        log.note("refused", KEY, "192.0.2.1", "it was revoked")
        log.write()
        log.write()
    found = check(lines_of(path))
    assert (found.lines, found.fault) == (6, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert '"key":"nodekey:6b6b' in lines_of(path)[1]
    assert '"at":"2027-01-15 08:00:00 UTC"' in lines_of(path)[1]


def test_full_files_are_put_aside_and_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "log"
    log = opened(path)
    for number in range(100):
        log.note("admitted", KEY, "192.0.2.1", f"number {number}")
        log.write()
    names = [path.with_name(f"log.{number}") for number in range(OLD_FILES, 0, -1)] + [path]
    assert sorted(tmp_path.iterdir()) == sorted(names)
    before = None
    for name in names:
        found = check(lines_of(name))
        assert found.fault == ""
        assert before is None or found.begin == before
        before = found.end
    assert before is not None
    assert before.number == 101


def test_a_torn_line_is_put_aside_and_said_and_the_chain_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.note("admitted", KEY)
    log.write()
    path.write_text(path.read_text()[:-10])
    again = opened(path)
    again.write()
    assert "line 2: is no line of this log" in caplog.text
    found = check(lines_of(path))
    assert (found.fault, found.begin.number) == ("", 1)
    assert "line 2: is no line of this log" in lines_of(path)[0]
    assert len(lines_of(path.with_name("log.1"))) == 2


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    """While one replaces the other."""
    path = tmp_path / "log"
    old, new = opened(path), opened(path)
    for _ in range(3):
        for log in (new, old):
            log.note("admitted", KEY)
            log.write()
    found = check(lines_of(path))
    assert (found.lines, found.fault) == (8, "")


def test_writers_that_find_the_file_full_go_on_in_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_FILE_BYTES", 3000)
    path = tmp_path / "log"
    logs = [opened(path) for _ in range(3)]

    def write(log: DecisionLog) -> None:
        for number in range(30):
            log.note("admitted", KEY, because=str(number))
            log.write()

    threads = [Thread(target=write, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    names = sorted(tmp_path.iterdir(), key=lambda name: int(f"0{name.suffix[1:]}"), reverse=True)
    files = [check(lines_of(name)) for name in names]
    assert [found.fault for found in files] == [""] * len(files)
    assert all(after.begin == before.end for before, after in pairwise(files))
    assert files[-1].end.number == 3 + 90
    assert len(files) > 5


def test_a_file_that_somebody_took_away_begins_anew_where_the_chain_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.write()
    path.unlink()
    log.note("admitted", KEY)
    log.write()
    assert check(lines_of(path)).begin.number == 1


def test_what_cannot_be_written_waits_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decisions, "MAX_WAITING", 3)
    folder = tmp_path / "folder"
    folder.mkdir()
    log = opened(folder / "log")
    log.write()
    (folder / "log").rename(tmp_path / "aside")
    folder.rmdir()
    for number in range(5):
        log.note("admitted", KEY, because=str(number))
    log.write()
    assert "the log of decisions is not written" in caplog.text
    folder.mkdir()
    (tmp_path / "aside").rename(folder / "log")
    log.write()
    lines = lines_of(folder / "log")
    assert check(lines).fault == ""
    assert '"event":"lost","count":2' in lines[-1]
    with pytest.raises(ConfigError, match="cannot write the log of decisions"):
        DecisionLog(tmp_path / "nowhere" / "log").open()


def test_of_what_a_full_disk_takes_a_part_nothing_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.write()
    for number in range(10):
        log.note("admitted", KEY, because=str(number))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 700, before[1]))
    try:
        log.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the log of decisions is not written" in caplog.text
    assert len(lines_of(path)) == 1
    log.write()
    found = check(lines_of(path))
    assert (found.lines, found.fault) == (11, "")


async def test_a_relay_writes_whom_it_let_in_and_whom_not(
    tmp_path: Path, refused_briefly: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="derp.server")
    friend, stranger = NodePrivate.generate(), NodePrivate.generate()
    path = tmp_path / "log"
    config = relay_config(allow_keys=frozenset({friend.public().raw}), admission_log=path)
    async with open_server(config) as server:
        caller = await call(server, private=friend)
        with pytest.raises(ConnectError):
            await call(server, private=stranger)
        await caller.aclose()
    lines = lines_of(path)
    found = check(lines)
    assert found.fault == ""
    assert f"ends with line 3, sha256:{found.end.hash}" in without_secrets(caplog.text)
    assert [line.split('"event":"')[1].split('"')[0] for line in lines] == ["started", "admitted", "refused"]
    assert str(stranger.public()) in lines[2]
    assert "it is none of --allow-keys" in lines[2]
