"""What an agent says of itself in order: its lifecycle, ends of scripts, and its users' sessions.  Layer L3.

All wait in a queue while there is no connection, with the moment when they happened.  Next hop: control.py.
"""

from collections import deque
from datetime import UTC, datetime
from typing import Final

import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from tailnet.agent.control import Control
from tailnet.agent.counters import Kind, Session
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent

# Sessions of an hour without a coordinator.  Of more the oldest are lost, and of a schedule's runs; never a state.
MAX_WAITING: Final = 1_024
_TYPES: Final = {
    Kind.SSH: agent.Connection.SSH,
    Kind.VSCODE: agent.Connection.VSCODE,
    Kind.JETBRAINS: agent.Connection.JETBRAINS,
    Kind.RECONNECTING_PTY: agent.Connection.RECONNECTING_PTY,
}


class Reports:
    """Made once per agent; `run` is one task."""

    def __init__(self, control: Control) -> None:
        self.lost_count = 0
        """Reports for which there was no room."""
        self._control = control
        self._queue: deque[tuple[str, Message, type[Message]]] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    def lifecycle(self, state: "agent.Lifecycle.State") -> None:
        """The agent has come to another state."""
        lifecycle = agent.Lifecycle(state=state, changed_at=convert.timestamp(datetime.now(UTC)))
        self._put("UpdateLifecycle", agent.UpdateLifecycleRequest(lifecycle=lifecycle), agent.Lifecycle)

    def script(self, timing: agent.Timing) -> None:
        """A script has ended."""
        request = agent.WorkspaceAgentScriptCompletedRequest(timing=timing)
        self._put("ScriptCompleted", request, agent.WorkspaceAgentScriptCompletedResponse)

    def session(self, session: Session, is_open: bool) -> None:
        """A session began or ended: Counters call this."""
        connection = agent.Connection(
            id=session.id,
            action=agent.Connection.CONNECT if is_open else agent.Connection.DISCONNECT,
            type=_TYPES[session.kind],
            timestamp=convert.timestamp(datetime.now(UTC)),
            ip=session.address,
            app_name=session.kind.value,
        )
        if not is_open:
            connection.status_code = session.status_code
            connection.reason = session.reason
        self._put("ReportConnection", agent.ReportConnectionRequest(connection=connection), Empty)

    async def wait_sent(self) -> None:
        """Until nothing waits."""
        while self._queue:
            await self._changed.park()

    async def run(self) -> None:
        """Send one after the other, until cancelled."""
        while True:
            while not self._queue:
                await self._changed.park()
            first = self._queue[0]
            await self._control.report(*first)
            # It may have been pushed out meanwhile.
            if self._queue and self._queue[0] is first:
                self._queue.popleft()
            self._changed.unpark_all()

    def _put(self, name: str, request: Message, answer: type[Message]) -> None:
        if len(self._queue) >= MAX_WAITING:
            oldest = next((each for each in self._queue if each[0] != "UpdateLifecycle"), None)
            if oldest is not None:
                self._queue.remove(oldest)
                self.lost_count += 1
        self._queue.append((name, request, answer))
        self._changed.unpark_all()
