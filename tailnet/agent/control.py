"""The coordinator's Agent service, over whichever connection there is.  Layer L3.

agent.py says when a connection is there; whoever calls waits for one, and calls again when it was lost before the
answer.  Calls have names of proto/agent.proto.  Next hop: tailnet/client/rpc.py.
"""

import logging
from typing import Final, TypeVar

import trio
from google.protobuf.message import Message

from tailnet.client.rpc import RpcClient
from tailnet.errors import CODE_UNIMPLEMENTED, RpcError, TransportError, Unimplemented
from tailnet.proto.version import CURRENT

_log = logging.getLogger("tailnet.agent")

M = TypeVar("M", bound=Message)

SERVICE: Final = "/coder.agent.v2.Agent/"
# Before a call is repeated on a connection that is still there: it took too long, so the server is busy.
_RETRY_SECONDS: Final = 1.0


class Control:
    """`attach` a connection, `detach` it when it is lost."""

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        """Calls that the server does not know: it is older than we."""
        self.minor = CURRENT.minor
        """Of the API that the coordinator serves."""
        self._rpc: RpcClient | None = None
        self._changed = trio.lowlevel.ParkingLot()

    def attach(self, rpc: RpcClient) -> None:
        self._rpc = rpc
        self.unknown.clear()
        self._changed.unpark_all()

    def detach(self) -> None:
        self._rpc = None

    async def call(self, name: str, request: Message, answer: type[M]) -> M:
        """Call until there is an answer.  Raises RpcError when the server refuses, Unimplemented among them."""
        while True:
            while (rpc := self._rpc) is None:
                await self._changed.park()
            if name in self.unknown:
                raise Unimplemented(f"{name} is not known to this coordinator")
            try:
                return await rpc.call(SERVICE + name, request, answer)
            except RpcError as error:
                if rpc.is_lost:
                    await self._wait_other(rpc)
                    continue
                if error.code == CODE_UNIMPLEMENTED:
                    self._note_unknown(name)
                raise
            except TransportError:
                await self._wait_other(rpc)

    async def report(self, name: str, request: Message, answer: type[M]) -> M | None:
        """The same for what is only told: a refusal is logged, and gives None."""
        try:
            return await self.call(name, request, answer)
        except RpcError as error:
            if error.code != CODE_UNIMPLEMENTED:
                _log.warning("the coordinator refuses %s: %s", name, error)
            return None

    async def _wait_other(self, rpc: RpcClient) -> None:
        """Until there is another connection, or this one has had a rest."""
        with trio.move_on_after(_RETRY_SECONDS):
            while self._rpc is rpc:
                await self._changed.park()

    def _note_unknown(self, name: str) -> None:
        self.unknown.add(name)
        _log.info("this coordinator does not know %s: it is not asked again", name)
