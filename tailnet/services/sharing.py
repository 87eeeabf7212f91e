"""What replicas tell each other beside their peers: one topic of hints each (layer L3, a contract).

Hints may be lost, late or twice, and of a later version; what has to be known stands in the store, or is told anew
when a session begins.  replicas.py runs these; server/replicated.py says which there are.
"""

from typing import Protocol

import trio

from tailnet.replica.messages import ReplicaID


class Shared(Protocol):
    """One topic.  All but `run` is called from the reactor's steps, and returns at once."""

    topic: str

    def greet(self) -> bytes:
        """What another replica is told when a session with it begins; empty: nothing."""
        ...

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        """Another replica says something, in a form that may be a later version's."""
        ...

    def forget(self, other: ReplicaID) -> None:
        """That replica has left the cluster."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started before anybody is heard."""
        ...
