"""Last words arrive, also at a client that is sending all the time and never reads between."""

import trio

from derp.close_reason import CloseReason
from derp.protocol.messages import Health
from derp.server.advisor import health_frame
from tests.derp.server.world import call, closed, open_server


async def test_last_words_reach_a_client_that_sends_and_sends() -> None:
    async with open_server() as server:
        caller, other = await call(server), await call(server)
        relay = server.relay
        (client,) = relay.router.members[caller.key].connections
        await caller.send(other.key, *([bytes(1000)] * 50))
        relay.sessions.leaving.send_away(client.wire, CloseReason.NOT_ADMITTED, "told", health_frame("go"))
        relay.host.flush()
        assert len(relay.sessions.leaving) == 1
        assert caller.key not in relay.router.members, "nobody reaches it any more"
        await caller.send(other.key, *([bytes(1000)] * 50))
        assert await caller.receive_a(Health) == Health("go")
        await caller.wait_closed()
        await caller.aclose()
        with trio.fail_after(60):
            while len(relay.sessions.leaving):
                await other.ping()
        assert closed(server)["not_admitted"] == 1
        await other.aclose()
