"""Why a packet arrives or does not: each situation on real relays, asked as an operator asks."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote

import pytest
import trio

from derp.config import Rate
from derp.errors import ConnectError
from derp.keys import NodePrivate, short_key
from derp.protocol.messages import RecvPacket
from derp.relay.counters import DropReason
from derp.server.debug import why
from derp.server.explain import MAX_DEPARTURES, Departures, explain_key, find_keys
from derp.server.server import RelayServer
from tests.derp.server.bare_relay import Peer
from tests.derp.server.mesh_world import Node, knows, open_nodes, until
from tests.derp.server.test_relay import TimedRelay
from tests.derp.server.test_session_flush import SMALL
from tests.derp.server.world import PATIENCE_SECONDS, Caller, ask, call, open_server, relay_config


async def answer(server: RelayServer, query: str) -> list[str]:
    """The lines of /debug/why."""
    request = f"GET /debug/why?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    head, _, body = (await ask(server, request.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return body.decode().splitlines()


async def pair(server: RelayServer, source: Caller, target: Caller) -> list[str]:
    return await answer(server, f"from=nodekey:{source.key.hex()}&to=nodekey:{target.key.hex()}")


@asynccontextmanager
async def open_callers(server: RelayServer, *privates: NodePrivate) -> AsyncIterator[list[Caller]]:
    """Clients that the relay has let in, closed at the end."""
    async with AsyncExitStack() as stack:
        callers = []
        for private in privates:
            callers.append(await call(server, private=private))
            stack.push_async_callback(callers[-1].aclose)
            await callers[-1].ping()
        yield callers


def keys(count: int) -> list[NodePrivate]:
    return [NodePrivate.generate() for _ in range(count)]


async def test_both_are_here() -> None:
    first, second = keys(2)
    async with open_server(relay_config()) as server, open_callers(server, first, second) as (a, b):
        lines = await pair(server, a, b)
        assert lines[0].startswith(f"{short_key(a.key)} is here since 0 s, from 127.0.0.1:")
        assert "its home is elsewhere: 0 packets from it, 0 for it." in lines[0]
        assert lines[-1] == "So: the way is open, and no packet has used it yet."
        await a.send(b.key, b"hello")
        assert await b.receive() == RecvPacket(a.key, b"hello")
        lines = await pair(server, a, b)
        assert "1 packets from it, 0 for it" in lines[0]
        assert lines[-1] == "So: packets of the first have reached the second."
        async with open_callers(server, second):
            lines = await pair(server, a, b)
            assert lines[2].startswith("It has 2 connections; packets go to the one that spoke last, number 3.")


async def test_one_who_left_and_one_who_was_refused() -> None:
    stranger = NodePrivate.generate()
    config = relay_config(deny_keys=frozenset({stranger.public().raw}))
    async with open_server(config) as server, open_callers(server, *keys(2)) as (a, b):
        await b.aclose()
        with trio.fail_after(PATIENCE_SECONDS):
            while b.key in server.relay.router.members:
                await a.ping()
        lines = await pair(server, a, b)
        assert lines[1] == f"{short_key(b.key)} is not here, and no relay of the region has announced it."
        assert lines[2] == "It left 0 s ago: closed_by_peer."
        assert lines[-1] == "So: packets for the second are dropped here as unknown_dest."
        back = await pair(server, b, a)
        assert back[-1] == "So: the first does not send here, so nothing of it passes this relay."
        with pytest.raises(ConnectError, match="does not admit this machine"):
            async with open_callers(server, stranger):
                pass
        lines = await answer(server, f"key={stranger.public().raw.hex()[:8]}")
        assert lines[1].startswith("It was refused 0 s ago: ")
        assert "is not admitted" in lines[1]
        never = await answer(server, "key=" + "ab" * 32)
        assert never[-1].startswith("It was not here lately")
        own = await answer(server, f"key={server.relay.public_key}")
        assert own == [f"{server.relay.public_key.short()} is this relay itself."]


async def test_questions_that_cannot_be_answered_say_how_to_ask() -> None:
    async with open_server(relay_config()) as server, open_callers(server, *keys(1)) as (a,):
        for query in ("", "from=abc", f"from={a.key.hex()}", "key=nodekey:xyz", f"key={a.key.hex()[:7]}", "key=%00"):
            (line,) = await answer(server, query)
            assert "ask for ?from=KEY&to=KEY or ?key=KEY" in line, query


async def test_over_the_mesh_and_while_a_relay_is_missing() -> None:
    async with open_nodes(alpha := Node("alpha.test"), beta := Node("beta.test")):
        alpha.join(beta.peer)
        beta.join(alpha.peer)
        a, b = await alpha.call(), await beta.call()
        await knows(a, alpha, b)
        await knows(b, beta, a)
        lines = await pair_of_node(alpha, a.key, b.key)
        name = alpha.mesh.states[beta.peer].name
        assert lines[1] == f"{short_key(b.key)} was announced by the relay {name}."
        assert lines[-1] == f"So: packets are forwarded to the relay {name}; ask there how it goes on."
        both = await pair_of_node(alpha, b.key, b.key)
        assert both[-1] == "So: both are at other relays: packets between them do not come by here."
        await beta.stop()
        await until(a, lambda: b.key not in alpha.router.members)
        await until(a, lambda: alpha.mesh.states[beta.peer].trouble != "")
        lines = await pair_of_node(alpha, a.key, b.key)
        assert f"{name} cannot be asked, and may have it: " in lines[-1]


async def pair_of_node(node: Node, source: bytes, target: bytes) -> list[str]:
    asked = {"from": source.hex(), "to": f"nodekey:{target.hex()}"}
    return why(node.server.relay, asked).splitlines()


async def test_a_fast_sender() -> None:
    config = relay_config(rate=Rate(70_000, 70_000))
    async with open_server(config) as server, open_callers(server, *keys(2)) as (a, b):
        await a.send(b.key, *[bytes(60_000)] * 8)
        with trio.fail_after(PATIENCE_SECONDS):
            while not server.relay.router.members[a.key].connections[-1].wire.paused:
                await b.ping()
        lines = await pair(server, a, b)
        assert "It sends faster than its rate limit allows" in lines[1]


async def test_a_reader_that_takes_nothing() -> None:
    async with open_server(relay_config()) as server, open_callers(server, *keys(2)) as (a, b):
        client = server.relay.router.members[b.key].connections[-1]
        with trio.fail_after(PATIENCE_SECONDS):
            while client.queue is None or not client.queue.dropped:
                await a.send(b.key, *[bytes(60_000)] * 8)
                await a.ping()
        lines = await pair(server, a, b)
        assert re.match(r"It reads too slowly: \d+ packets wait, the oldest for \d\.\d s\.", lines[2])
        full = (
            r"\d+ packets for it were dropped as queue_head, the last \d+ s ago: they had waited for up to \d+ ms when "
        )
        assert re.match(full + r"the queue was full: 512 packets, 2097152 bytes, half of them", lines[3])
        assert "the first have reached the second, and some were dropped: " in lines[-1]


@pytest.mark.parametrize(("limit", "waited"), [(0.25, 300), (1.0, 1300)])
def test_packets_that_waited_too_long_are_named_with_their_sender_and_their_bound(limit: float, waited: int) -> None:
    with TimedRelay(queue_delay_seconds=limit, tcp_write_timeout_seconds=0.0) as bare:
        bulk, rival, other, slow = (bare.connect(buffer_bytes=SMALL) for _ in range(4))
        while slow.client.queue is None or slow.client.queue.packets < 80:
            for sender in (bulk, rival):
                sender.send_packets(slow, *[bytes(1000)] * 20)
            bare.serve()
        other.send_packets(slow, b"sparse")
        bare.serve()
        for step in (waited / 2000, waited / 2000):  # CoDel looks twice
            bare.time += step
            slow.read()
            bare.serve()
        assert bare.router.counters.dropped(DropReason.QUEUE_DELAY) == sum(bare.router.counters.packets_dropped) > 0
        bare.serve_reading(slow)
        bare.time += 3
        bare.serve()

        def ask_why(sender: Peer) -> list[str]:
            return why(bare.relay, {"from": sender.key.hex(), "to": slow.key.hex()}).splitlines()

        lines = ask_why(bulk)
        (line,) = [line for line in lines if "packets for it were dropped" in line]
        found = re.fullmatch(
            r"(\d+) packets for it were dropped as queue_delay, the last 3 s ago: they had waited for up to (\d+) ms, "
            r"and beside packets of others one may wait for (\d+) ms, or for 20 ms once that was so for 100 ms\.",
            line,
        )
        assert found is not None, line
        assert (int(found[2]), int(found[3])) == (waited, 1000 * limit)
        parts = []
        for sender in (bulk, rival):
            verdict = (
                r"So: packets .* reached the second, and some were dropped: (\d+) as queue_delay, the last 3 s ago\."
            )
            own = re.fullmatch(verdict, ask_why(sender)[-1])
            assert own is not None
            parts.append(int(own[1]))
        assert sum(parts) == int(found[1]) == bare.router.counters.dropped(DropReason.QUEUE_DELAY)
        assert ask_why(other)[-1] == "So: packets of the first have reached the second.", "it lost nothing"


def test_the_past_is_bounded_and_knows_the_latest() -> None:
    departures = Departures()
    many = [number.to_bytes(32, "big") for number in range(MAX_DEPARTURES + 1)]
    for key in many:
        departures.note(key, 1.0, "left")
    assert departures.get(many[0]) is None
    assert len(list(departures.keys())) == MAX_DEPARTURES
    departures.note(many[1], 2.0, "not wanted", was_refused=True)
    departures.note(b"k" * 32, 3.0, "left")  # many[2] makes room, not the one that was noted again
    assert departures.get(many[2]) is None
    seen = departures.get(many[1])
    assert seen is not None
    assert (seen.at, seen.was_refused) == (2.0, True)


async def test_a_key_of_a_log_line_can_be_asked_for_as_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "derp.server")
    async with open_server(relay_config()) as server:
        caller = await call(server)
        (line,) = (record for record in caplog.records if record.getMessage().startswith("> client"))
        short = line.getMessage().split()[3]
        found = await answer(server, f"key={quote(short)}")
        assert found[0].startswith(f"{short} is here since ")
        field = line.__dict__["fields"]["key"]
        assert await answer(server, f"key=nodekey:{field.hex()}") == found
        await caller.aclose()
    departures = Departures()
    key = bytes.fromhex("fbefbe") + bytes(29)  # in base64 "++++", which a query may turn into blanks
    departures.note(key, 0.0, "left")
    assert short_key(key) == "[++++A]"
    for text in ("[++++A]", "[    A]", " [++++A] "):
        assert find_keys(text, server.relay.router, departures) == [key]
    assert find_keys("[++++B]", server.relay.router, departures) == []


async def test_a_prefix_that_means_several_keys_is_asked_back() -> None:
    async with open_server(relay_config()) as server:
        departures = server.relay.sessions.departures
        for last in (b"\x01", b"\x02"):
            departures.note(b"\xaa" * 31 + last, 0.0, "closed_by_peer")
        assert len(find_keys("aa" * 8, server.relay.router, departures)) == 2
        (line,) = await answer(server, "key=" + "aa" * 8)
        assert "means 2 keys" in line
        found = explain_key(b"\xaa" * 31 + b"\x01", server.relay.router, departures, (), 7200.0)
        assert found[1] == "It left 2 h ago: closed_by_peer."
