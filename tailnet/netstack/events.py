"""What a connection tells its user, and whom it tells: the stack that owns it.  Layer L1.  Next hop: stack.py."""

from enum import Enum, IntFlag
from typing import Protocol, TypeVar

from tailnet.netstack.limits import Counters, Limits

Member = TypeVar("Member")


class What(IntFlag):
    """What happened to a connection since the last batch; several at once."""

    CONNECTED = 1
    READABLE = 2
    """Bytes wait, or the end of the peer's stream was reached."""
    WRITABLE = 4
    """After `send` took less than it was given."""
    RESET = 8
    """It ended otherwise than by both sides closing it: `end` says how."""
    CLOSED = 16
    """It is gone, or in TIME-WAIT.  Nothing more will happen."""
    INCOMING = 32
    """A SYN came: `accept` or `refuse`."""


class End(Enum):
    """How a connection ended."""

    CLOSED = "both sides closed it"
    REFUSED = "the peer refused it"
    RESET = "the peer reset it"
    TIMED_OUT = "the peer did not answer"
    UNREACHABLE = "the peer cannot be reached"
    ABORTED = "this side aborted it"


class Owner(Protocol[Member]):
    """What a connection knows of its stack."""

    limits: Limits
    counters: Counters
    now: float
    queued_bytes: int
    ready: dict[Member, None]
    """Whose packets are to be collected."""

    def happened(self, connection: Member, what: int) -> None: ...

    def established(self, connection: Member) -> None: ...

    def forget(self, connection: Member) -> None:
        """It is CLOSED."""

    def rest(self, connection: Member) -> None:
        """It is in TIME-WAIT."""

    def grant_memory(self, size: int) -> bool: ...

    def return_memory(self, size: int) -> None: ...
