"""The client that stays, while its relay, the genuine derper and ours, is stopped as an operator stops it."""

import pytest
import trio

from derp.client.dial import DialOptions
from derp.client.reconnect import BackOff, Connected, Disconnected, Heard, open_reconnecting_client
from derp.errors import ConnectError
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket, Restarting
from tests.support.peers import PATIENCE_SECONDS
from tests.support.relay_command import RelayKind
from tests.support.relays import open_relay

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("kind", ["genuine", "ours"])
async def test_a_relay_is_replaced_under_a_client(kind: RelayKind) -> None:
    private = NodePrivate.generate()
    mine = private.public().raw
    where: list[str] = []

    def target() -> str:
        if not where:
            raise ConnectError("no relay yet")
        return where[-1]

    options, back_off = DialOptions(environment=None), BackOff(first_seconds=0.05, limit_seconds=0.2)
    with trio.fail_after(2 * PATIENCE_SECONDS):
        async with open_reconnecting_client(target, private, options=options, back_off=back_off) as client:
            async with open_relay(kind) as first:
                where.append(first.url)
                connected = await client.receive()
                assert isinstance(connected, Connected)
                client.note_preferred(True)
                await client.send(mine, b"before")
                assert await client.receive() == RecvPacket(mine, b"before")
            heard: list[Heard] = [await client.receive()]
            while not isinstance(heard[-1], Disconnected):
                heard.append(await client.receive())
            # The genuine relay just goes; ours says so first.
            assert any(isinstance(news, Restarting) for news in heard) is (kind == "ours")
            await client.send(mine, b"meanwhile")
            async with open_relay(kind) as second:
                where.append(second.url)
                again = await client.receive()
                assert isinstance(again, Connected)
                assert again.generation == 2
                assert again.server_key != connected.server_key
                assert await client.receive() == RecvPacket(mine, b"meanwhile")
                assert await client.ping() > 0
                assert client.statistics().packets_lost == 0
