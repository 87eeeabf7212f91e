"""How much memory there is: the machine's, or less in a container; and that a burst is given back."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from derp.server.memory import MemoryKeeper, find_trim, give_back_forever, memory_bytes, resident_bytes
from tests.derp.server.world import call, open_server, relay_config

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


# --- giving it back

MIB = 1 << 20


def test_it_is_worth_it_after_a_burst_and_once() -> None:
    keeper = MemoryKeeper(50 * MIB)
    assert not keeper.is_due(0, 0, 50 * MIB)
    assert not keeper.is_due(4000, 4000, 130 * MIB), "what is in use cannot be given back"
    assert not keeper.is_due(2500, 4000, 130 * MIB), "nor is it worth a pause while most of it is"
    assert keeper.is_due(1000, 2500, 130 * MIB)
    keeper.note_done(1000, 70 * MIB)
    assert not keeper.is_due(1000, 1000, 70 * MIB)
    assert not keeper.is_due(10, 1000, 85 * MIB), "little would come of it"
    assert keeper.is_due(10, 3000, 120 * MIB), "it came and went between two looks"


async def test_it_looks_now_and_then(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [50 * MIB]
    trims: list[float] = []

    trimmed = threading.Event()

    def trim() -> None:
        trims.append(load)
        held[0] = 60 * MIB
        trimmed.set()

    monkeypatch.setattr("derp.server.memory.find_trim", lambda: trim)
    monkeypatch.setattr("derp.server.memory.resident_bytes", lambda: held[0])
    async with trio.open_nursery() as nursery:
        load = 0.0
        nursery.start_soon(give_back_forever, lambda: (load, load))
        await trio.sleep(61)
        load, held[0] = 4000.0, 130 * MIB
        await trio.sleep(60)
        load = 0.0
        await trio.to_thread.run_sync(trimmed.wait, 10.0)
        await trio.sleep(600)
        assert trims == [0.0]
        nursery.cancel_scope.cancel()


async def test_where_nothing_can_be_given_back_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.server.memory.find_trim", lambda: None)
    await give_back_forever(lambda: (0.0, 0.0))


async def test_a_server_knows_its_load_and_what_it_was_at_most() -> None:
    async with open_server(relay_config(tcp_write_timeout_seconds=0)) as server:
        callers = [await call(server) for _ in range(3)]
        assert server.read_load() == (3.0, 3.0)
        one, slow, other = callers
        pool = server.relay.router.pool
        while pool.held_bytes < 768 * 1024:
            await one.send(slow.key, *[bytes(60_000)] * 8)
            await one.ping()
        now, most = server.read_load()
        assert now == most >= 3 + 48
        await slow.aclose()
        await other.aclose()
        while len(server.reactor.wires) > 1:
            await one.ping()
        assert server.read_load() == (1.0, most)
        assert server.read_load() == (1.0, 1.0)
        await one.aclose()


BURST = """
from derp.server.memory import find_trim, resident_bytes
trim = find_trim()
blocks = [bytes(20_000) for _ in range(4000)]
full = resident_bytes()
blocks = blocks[::40]  # what stays lies between what goes, as with clients
kept = resident_bytes()
trim()
print(full, kept, resident_bytes())
"""


@pytest.mark.skipif(find_trim() is None or resident_bytes() is None, reason="a C library that cannot give it back")
def test_a_burst_is_given_back_to_the_system() -> None:
    # In a process of its own: what others of this one hold would be in the way.
    done = subprocess.run([sys.executable, "-c", BURST], capture_output=True, text=True, check=True)
    full, kept, given_back = map(int, done.stdout.split())
    assert kept > full - 20 * MIB, "the library keeps it by itself"
    assert given_back < full - 50 * MIB
