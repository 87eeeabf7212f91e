"""What a connection tells its user: what happened, and how it ended.  Layer L1.  Told by stack.py."""

from enum import Enum, IntFlag


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
