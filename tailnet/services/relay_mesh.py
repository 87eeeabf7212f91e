"""The embedded relays of replicas that serve one region: each has a mesh connection to each other one.  Layer L3.

Clients of a region come to any of its replicas, be it behind one balancer or by names of their own, and reach each
other by this mesh.  It goes by the ways that replicas have to each other (bus/links.py), whose proof stands for a mesh
key.  A replica says which region its relay serves when a session begins; its connection goes when the replica does.
Next hop: derp/server/mesh.py.
"""

import logging
import random
from functools import partial
from typing import Final

import trio

from derp.errors import ConnectError
from derp.server.mesh import Dialled, Mesh, greet_kin, log_in_as_kin
from derp.server.relay import Relay
from derp.transport.host import Wire
from derp.transport.linkstream import LinkStream, take_over
from tailnet.bus.links import Link
from tailnet.replica.messages import ReplicaID
from tailnet.services.replicas import REDIAL_SECONDS, Replicas
from tailnet.services.sharing import Shared

_log = logging.getLogger("tailnet.replicas")

# Each relay hears of every client of each other one, and a packet crosses once: with more of them a region gains
# nothing, and several regions do (20 replicas are 4).
MAX_OF_REGION: Final = 5
# A dialler logs in as soon as its link is proved: a round trip.
_GREETING_SECONDS: Final = 10.0


class RelayMesh(Shared):
    """What replicas share of their relays (sharing.py).  One per replica with a relay."""

    topic = "relay"

    def __init__(self, replicas: Replicas, relay: Relay, mesh: Mesh, region_id: int) -> None:
        self.region_id = region_id
        self.others: dict[ReplicaID, trio.CancelScope] = {}
        """Replicas whose relays serve the same region."""
        self._replicas = replicas
        self._relay = relay
        self._mesh = mesh
        self._served: set[Wire] = set()
        self._nursery: trio.Nursery

    def trouble(self) -> str:
        """What an operator should change, in a sentence; empty when all is well."""
        count = len(self.others) + 1
        if count <= MAX_OF_REGION:
            return ""
        return (
            f"{count} replicas serve region {self.region_id}, and each hears of all clients of the others: "
            f"give some another --derp-region-id, so that {MAX_OF_REGION} at the most have the same"
        )

    def greet(self) -> bytes:
        return b"%d" % self.region_id

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        if payload != self.greet():
            self.forget(other)
        elif other not in self.others:
            scope = self.others[other] = trio.CancelScope()
            self._nursery.start_soon(self._keep, other, scope)
            if trouble := self.trouble():
                _log.warning("! %s", trouble)

    def forget(self, other: ReplicaID) -> None:
        scope = self.others.pop(other, None)
        if scope is not None:
            scope.cancel()

    def keys_here(self) -> set[bytes]:
        """Of replicas whose relays are connected with ours: each has one for as long as it lives."""
        return {client.key for client in self._relay.router.clients.values() if client.wire in self._served}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def serve(self, link: Link) -> None:
        """Another replica's relay dialled ours."""
        try:
            stream = await _on_the_reactor(link)
        except ConnectError:
            return  # it dials anew
        self._served = {wire for wire in self._served if wire in self._relay.host.wires} | {stream.link}
        self._relay.host.tick()
        try:
            greet_kin(self._relay.sessions, stream.link, _GREETING_SECONDS)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self._relay.host.flush()

    async def _keep(self, other: ReplicaID, scope: trio.CancelScope) -> None:
        name = f"replica {self._replicas.name_of(other)}"
        with scope:
            while True:
                try:
                    await self._mesh.keep(other, name, partial(self._dial, other))
                    return  # we leave
                except Exception:
                    self._replicas.note_defect(other)
                finally:
                    await self._mesh.forget(other)
                await trio.sleep(random.uniform(*REDIAL_SECONDS))

    async def _dial(self, other: ReplicaID) -> Dialled:
        link = await self._replicas.dial_relay(other)
        if link.other != other:
            await trio.aclose_forcefully(link.stream)
            self._replicas.note_found(other, link.other)
            raise ConnectError(f"replica {self._replicas.name_of(link.other)} has its address now")
        return await log_in_as_kin(await _on_the_reactor(link), self._relay.sessions.kin_private)


async def _on_the_reactor(link: Link) -> LinkStream:
    stream = take_over(link.stream)
    if not isinstance(stream, LinkStream):  # it broke meanwhile
        await trio.aclose_forcefully(stream)
        raise ConnectError("it closed the connection behind its proof")
    return stream
