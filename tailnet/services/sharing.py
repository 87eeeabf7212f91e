"""What replicas tell each other beside their peers: one topic of hints each (layer L3, a contract).

Hints may be lost, late or twice, and of a later version; what has to be known stands in the store, or is told anew
when a session begins.  replicas.py runs these; server/replicated.py says which there are.
"""

from abc import ABC, abstractmethod

import trio

from tailnet.replica.messages import ReplicaID


class Shared(ABC):
    """One topic.  All but `run` is called from the reactor's steps, and returns at once.

    Who derives from this has nothing to say at the beginning, keeps nothing of others and has no task, unless it says
    otherwise.
    """

    topic: str

    def greet(self) -> bytes:
        """What another replica is told when a session with it begins; empty: nothing."""
        return b""

    @abstractmethod
    def hear(self, other: ReplicaID, payload: bytes) -> None:
        """Another replica says something, in a form that may be a later version's."""

    def forget(self, other: ReplicaID) -> None:  # noqa: B027  # who keeps nothing has nothing to forget
        """That replica has left the cluster."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started before anybody is heard."""
        task_status.started()
