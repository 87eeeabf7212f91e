"""Clients on terms: told before the end, and sent away with the reason when it comes."""

import time

import pytest

from derp.admission.signed import IssuerPrivate
from derp.admission.terms import Allowance, Terms
from derp.admission.ticket import sign_ticket
from derp.keys import NodePrivate
from derp.protocol.messages import Health
from derp.relay.clients import Client
from derp.server.guests import WARN_SECONDS
from derp.server.server import RelayServer
from tests.derp.server.world import Caller, call, closed, move_clock, open_server, relay_config

ISSUER = IssuerPrivate(b"i" * 32)
pytestmark = pytest.mark.usefixtures("refused_briefly")


class Wall:
    """The wall's clock of a relay, moved together with its own."""

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self._off = 0.0
        server.relay.sessions.guests._clock = lambda: time.time() + self._off

    def move(self, seconds: float) -> None:
        self._off += seconds
        move_clock(self._server, seconds)


async def with_ticket(server: RelayServer, seconds: float) -> Caller:
    private, now = NodePrivate.generate(), time.time()
    ticket = sign_ticket(ISSUER, private.public().raw, now, now + seconds)
    return await call(server, private=private, headers=(("Derp-Ticket", ticket),))


def client_of(server: RelayServer, caller: Caller) -> Client:
    (client,) = server.relay.router.members[caller.key].connections
    return client


async def test_a_ticket_lets_in_warns_an_hour_before_its_end_and_ends() -> None:
    async with open_server(relay_config(issuers=(ISSUER.public(),))) as server:
        wall = Wall(server)
        caller = await with_ticket(server, 3 * WARN_SECONDS)
        await caller.ping()
        assert not [one for one in caller.inbox if isinstance(one, Health)]
        wall.move(2 * WARN_SECONDS + 61)
        await caller.ping()
        text = (await caller.receive_a(Health)).text
        assert text.startswith("the ticket of this machine ends at 20")
        wall.move(WARN_SECONDS)
        await caller.write(b"\x06\0\0\0\0")  # anything, so that the relay looks at its clock
        text = (await caller.receive_a(Health)).text
        assert text == "the ticket of this machine has ended: ask whoever runs this relay"
        await caller.wait_closed()
        await caller.aclose()
        assert closed(server) == {"not_admitted": 1}
        assert len(server.relay.sessions.guests) == 0


async def test_bytes_are_counted_both_ways_and_end_it() -> None:
    async with open_server() as server:
        one, other = await call(server), await call(server)
        guests = server.relay.sessions.guests
        client = client_of(server, other)
        account = Allowance(10_000)
        guests.arrive(client, Terms("the invitation of this machine", account=account))
        await one.send(other.key, bytes(1000), bytes(1000))
        await one.ping()
        guests.look()
        assert account.left == 10_000 - client.bytes_out
        guests.charge_sent(client, 7_500)
        server.relay.host.flush()
        while "few" not in (text := (await other.receive_a(Health)).text):
            pass
        assert text.startswith("the invitation of this machine has few of its bytes left")
        guests.charge_sent(client, 500)
        server.relay.host.flush()
        assert (await other.receive_a(Health)).text.startswith("the invitation of this machine has no bytes left")
        await other.wait_closed()
        await other.aclose()
        assert closed(server)["not_admitted"] == 1
        await one.aclose()


async def test_a_client_that_left_is_forgotten_and_its_last_bytes_are_charged() -> None:
    async with open_server() as server:
        one, other = await call(server), await call(server)
        guests, account = server.relay.sessions.guests, Allowance(10_000)
        client = client_of(server, other)
        guests.arrive(client, Terms("its invitation", time.time() + 60, account))
        assert guests.terms_of(client) is not None
        await one.send(other.key, bytes(1000))
        await one.ping()
        await other.aclose()
        while len(guests):
            await one.ping()
        assert account.left == 9_000
        await one.aclose()
