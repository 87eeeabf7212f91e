"""The states of a TCP connection and what leads from one to the next (RFC 9293 section 3.3.2).  Layer L1.

A segment can be several inputs in this order: its SYN, its acknowledgement of our SYN, of our FIN, and its FIN.
LISTEN is the state of a connection whose SYN came and whom nobody has accepted yet.  Next hop: connection.py.
"""

from enum import Enum
from typing import Final, TypeAlias


class State(Enum):
    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"


class Input(Enum):
    CONNECT = "the user connects"
    ACCEPT = "the user accepts"
    FINISH = "the user has sent everything"
    ABORT = "the user aborts, or time is up"
    SYN = "a SYN came"
    SYN_ACK = "a SYN with the acknowledgement of ours came"
    SYN_ACKED = "our SYN was acknowledged"
    FIN_ACKED = "our FIN was acknowledged"
    FIN = "a FIN came"
    RST = "an acceptable RST came"
    TIME_OUT = "2 MSL passed, or the peer's FIN did not come in time"


class Fault(Enum):
    """Cells that are no state."""

    LOCAL = "the user must not ask for that now"
    IGNORE = "nothing changes"


Cell: TypeAlias = State | Fault
_END: Final = {Input.ABORT: State.CLOSED, Input.RST: State.CLOSED}
_OPEN_AGAIN: Final[dict[Input, Cell]] = {Input.CONNECT: Fault.LOCAL, Input.ACCEPT: Fault.LOCAL}


def _row(**cells: Cell) -> dict[Input, Cell]:
    """A row, in which what is not named changes nothing."""
    return {
        **dict.fromkeys(Input, Fault.IGNORE),
        **_OPEN_AGAIN,
        **_END,
        **{Input[name]: cell for name, cell in cells.items()},
    }


TABLE: Final[dict[State, dict[Input, Cell]]] = {
    State.CLOSED: _row(CONNECT=State.SYN_SENT, SYN=State.LISTEN, FINISH=Fault.LOCAL),
    State.LISTEN: _row(ACCEPT=State.SYN_RECEIVED, FINISH=Fault.LOCAL),
    # What the user finishes before the handshake ends is sent behind it: connection.py asks again in ESTABLISHED.
    State.SYN_SENT: _row(SYN_ACK=State.ESTABLISHED, SYN=State.SYN_RECEIVED),
    State.SYN_RECEIVED: _row(SYN_ACKED=State.ESTABLISHED),
    State.ESTABLISHED: _row(FINISH=State.FIN_WAIT_1, FIN=State.CLOSE_WAIT),
    State.FIN_WAIT_1: _row(FIN_ACKED=State.FIN_WAIT_2, FIN=State.CLOSING, FINISH=Fault.LOCAL),
    State.FIN_WAIT_2: _row(FIN=State.TIME_WAIT, TIME_OUT=State.CLOSED, FINISH=Fault.LOCAL),
    State.CLOSE_WAIT: _row(FINISH=State.LAST_ACK),
    State.CLOSING: _row(FIN_ACKED=State.TIME_WAIT, FINISH=Fault.LOCAL),
    State.LAST_ACK: _row(FIN_ACKED=State.CLOSED, FINISH=Fault.LOCAL),
    # RFC 1337: a reset does not shorten TIME-WAIT.
    State.TIME_WAIT: _row(TIME_OUT=State.CLOSED, RST=Fault.IGNORE, FINISH=Fault.LOCAL),
}

SYNCHRONIZED: Final = frozenset(State) - {State.CLOSED, State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED}
MAY_RECEIVE: Final = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})
MAY_SEND: Final = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})
