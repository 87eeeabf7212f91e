"""The ledger says what sockets carried, by day, tenant and key, and outlives whoever writes it."""

import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from derp.errors import ConfigError
from derp.protocol.messages import RecvPacket
from derp.relay.clients import Client
from derp.relay.limits import Limits
from derp.relay.usage import OTHERS, Usage
from derp.server import ledger as module
from derp.server.ledger import Ledger, LedgerFile, day_of
from tests.derp.relay.world import World
from tests.derp.server.test_keysets import until
from tests.derp.server.world import Caller, call, open_server, relay_config

NOW = 1_800_000_000.0
TODAY = "2027-01-15"


class Nobody:
    """Nobody has a quota."""

    def spend(self, client: Client, count: int) -> None:
        pass

    def begin_recall(self) -> bool:
        return False

    def recall(self, day: str, used: Iterable[tuple[bytes | str, int, int]]) -> None:
        raise AssertionError("nobody wants to know")


def totals(path: Path) -> dict[bytes, Usage]:
    """By key, over all days."""
    found: dict[bytes, Usage] = {}
    for _, _, key, usage in LedgerFile(path).read():
        found[key] = found.get(key, Usage()).plus(usage)
    return found


async def read_to_the_end(caller: Caller, last: bytes) -> tuple[int, int]:
    """How many packets and bytes came, up to the one that is the last."""
    count = size = 0
    while True:
        packet = (await caller.receive_a(RecvPacket)).packet
        count, size = count + 1, size + len(packet)
        if packet == last:
            return count, size


async def test_it_equals_what_the_sockets_carried_within_a_thousandth(tmp_path: Path) -> None:
    """To a reader that keeps up, to one that loses most of it, and to nobody."""
    path = tmp_path / "ledger"
    config = relay_config(ledger=path, queue_bytes=200_000, tcp_write_timeout_seconds=0)
    sent = {"packets": 0, "bytes": 0}
    async with open_server(config) as server:
        sender, quick, slow = await call(server), await call(server), await call(server)

        async def send(to: bytes, *packets: bytes) -> None:
            await sender.send(to, *packets)
            sent["packets"] += len(packets)
            sent["bytes"] += sum(map(len, packets))

        route = server.relay.router.members[slow.key].connections[0]
        while not route.packets_lost:
            await send(slow.key, *[bytes(1400)] * 300)
            await sender.ping()
        await send(b"n" * 32, *[bytes(500)] * 100)
        got = {}
        async with trio.open_nursery() as nursery:

            async def read(name: str, caller: Caller) -> None:
                got[name] = await read_to_the_end(caller, b"the end")

            nursery.start_soon(read, "quick", quick)
            nursery.start_soon(read, "slow", slow)
            for _ in range(20):
                await send(quick.key, *[bytes(1300)] * 100)
            while route.queue is not None:
                await sender.ping()
            await send(slow.key, b"the end")
            await send(quick.key, b"the end")
        await slow.aclose()
        await sender.aclose()
        await quick.aclose()
        await until(lambda: not server.relay.router.clients)
        keys = sender.key, quick.key, slow.key
    of_sender, of_quick, of_slow = (totals(path)[key] for key in keys)
    assert (of_sender.packets_in, of_sender.bytes_in) == (sent["packets"], sent["bytes"])
    assert (of_sender.packets_dropped, of_sender.bytes_dropped) == (100, 50_000)
    assert (of_quick.packets_out, of_quick.bytes_out) == got["quick"]
    assert of_slow.bytes_dropped > 0
    for mine, real in zip((of_slow.packets_out, of_slow.bytes_out), got["slow"], strict=True):
        assert abs(mine - real) <= real / 1000
    everything = Usage()
    for usage in totals(path).values():
        everything = everything.plus(usage)
    assert everything.bytes_in == everything.bytes_out + everything.bytes_dropped, "nothing is left unexplained"


async def test_two_runs_add_to_the_same_rows_and_a_tenant_has_its_own(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for _ in range(2):
        async with open_server(relay_config(ledger=path)) as server:
            one = await call(server)
            limits = Limits(tenant_by_key={one.key: "acme"})
            server.relay.sessions.set_limits(server.config.rate, {}, limits)
            await one.send(one.key, b"x" * 10)
            await one.receive_a(RecvPacket)
            await one.aclose()
    rows = [(tenant, usage) for _, tenant, _, usage in LedgerFile(path).read()]
    assert rows == [("acme", Usage(1, 10, 1, 10, 0, 0))] * 2, "with a key each, as callers have"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rows_are_added_up_and_old_days_forgotten(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "ledger")
    file.add({("2027-01-01", "a", b"k"): Usage(1, 2, 3, 4, 5, 6), ("2027-01-02", "a", b"k"): Usage(1)}, "2027-01-01")
    file.add({("2027-01-02", "a", b"k"): Usage(1, 1, 1, 1, 1, 1)}, "2027-01-02")
    assert list(file.read()) == [("2027-01-02", "a", b"k", Usage(2, 1, 1, 1, 1, 1))]
    assert list(file.read("2027-01-03")) == []
    assert list(file.read("", "2027-01-01")) == []


def test_what_was_used_today_and_in_this_month(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "ledger")
    for day, count in (("2026-12-31", 1), ("2027-01-01", 10), ("2027-01-15", 100), ("2027-01-16", 1000)):
        file.add({(day, "t", b"k"): Usage(bytes_in=count, bytes_out=count)}, "")
    assert file.used(TODAY) == [(b"k", 200, 220), ("t", 200, 220)]


def test_a_day_has_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    file = LedgerFile(tmp_path / "ledger")
    for number in range(6):
        file.add({(TODAY, "t", bytes([number])): Usage(1)}, "")
    file.add({(TODAY, "t", bytes([1])): Usage(1)}, "")
    rows = {key: usage.packets_in for _, _, key, usage in file.read()}
    assert rows == {OTHERS: 3, b"\0": 1, b"\1": 2, b"\2": 1}
    monkeypatch.setattr(module, "MAX_TENANTS", 2)
    for number in range(4):
        file.add({(TODAY, f"t{number}", b"x"): Usage(1)}, "")
    others = {tenant: usage.packets_in for _, tenant, key, usage in file.read() if key == OTHERS}
    assert others == {"t": 3, "t0": 1, "default": 3}, "whoever admits may name any number of tenants"


async def test_what_cannot_be_written_waits_in_memory(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.01)
    path = tmp_path / "folder" / "ledger"
    path.parent.mkdir()
    world = World()
    client = world.connect("a")
    client.tenant = "t"
    ledger = Ledger(path, 3, world.router.clients, Nobody(), clock=lambda: NOW)
    await nursery.start(ledger.run)
    path.parent.rename(tmp_path / "gone")
    client.packets_in, client.bytes_in = 1, 100
    await until(lambda: ledger.write_failures >= 2)
    client.bytes_in += 50
    (tmp_path / "gone").rename(path.parent)
    await until(lambda: bool(list(LedgerFile(path).read())))
    assert list(LedgerFile(path).read()) == [(TODAY, "t", client.key, Usage(1, 150))]
    assert caplog.text.count("kept in memory until it can be written") == 1, "one line for one trouble"
    nursery.cancel_scope.cancel()


async def test_what_a_month_of_keys_used_is_recalled_in_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between which others have their turn: packets wait for no ledger."""
    monkeypatch.setattr(module, "_AT_ONCE", 10)
    rows = {(TODAY, "t", bytes([number]) * 32): Usage(bytes_in=number) for number in range(100)}
    LedgerFile(tmp_path / "ledger").add(rows, "")
    recalled: list[int] = []

    class Everybody(Nobody):
        def begin_recall(self) -> bool:
            return True

        def recall(self, day: str, used: Iterable[tuple[bytes | str, int, int]]) -> None:
            recalled.append(sum(count for whose, count, _ in used if isinstance(whose, bytes)))

    ledger = Ledger(tmp_path / "ledger", 3, {}, Everybody(), clock=lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        nursery.cancel_scope.cancel()
    assert (len(recalled), sum(recalled)) == (11, sum(range(100)))


async def test_who_is_sent_away_by_the_last_count_takes_nobodys_row_along(tmp_path: Path) -> None:
    world = World()
    clients = [world.connect(name) for name in "abc"]

    class Last(Nobody):
        def spend(self, client: Client, count: int) -> None:
            world.router.unregister(client)

    ledger = Ledger(tmp_path / "ledger", 3, world.router.clients, Last(), clock=lambda: NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        for client in clients:
            client.packets_in, client.bytes_in = 1, 100
        nursery.cancel_scope.cancel()
    assert totals(tmp_path / "ledger") == {client.key: Usage(1, 100) for client in clients}


async def test_a_file_that_is_none_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text("something else, and long enough to be no database" * 50)
    ledger = Ledger(path, 3, {}, Nobody())
    with pytest.raises(ConfigError, match="cannot be used as the ledger: file is not a database"):
        await ledger.run()
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT 1 FROM ledger")


def test_days_are_those_of_utc() -> None:
    assert (day_of(NOW), day_of(0.0), day_of(86_399.9)) == (TODAY, "1970-01-01", "1970-01-01")
