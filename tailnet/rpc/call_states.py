"""Who may still speak in a dRPC call: five states and the table between them.  Layer L1.

The same table serves both sides: "peer" is the client for a server and the server for a client.
Used by: rpc/drpc.py.
"""

import enum
from typing import Final


class CallState(enum.Enum):
    """The life of one call on a stream; after ENDED the same stream may carry the next call."""

    IDLE = "no call yet"
    OPEN = "both sides may send messages"
    SEND_CLOSED = "we sent CloseSend"
    RECEIVE_CLOSED = "the peer sent CloseSend"
    ENDED = "Close, Error or Cancel either way, or CloseSend both ways"


class CallStep(enum.Enum):
    """What moves it."""

    INVOKE = "the client names the RPC"
    SEND_CLOSE = "we send CloseSend"
    RECEIVE_CLOSE = "the peer sends CloseSend"
    END = "either side ends the call at once"


# A step of ours that is missing is our fault.  A step of the peer that is missing is ignored, as genuine peers do:
# a second CloseSend, or anything behind the end.
TRANSITIONS: Final = {
    (CallState.IDLE, CallStep.INVOKE): CallState.OPEN,
    (CallState.OPEN, CallStep.SEND_CLOSE): CallState.SEND_CLOSED,
    (CallState.OPEN, CallStep.RECEIVE_CLOSE): CallState.RECEIVE_CLOSED,
    (CallState.OPEN, CallStep.END): CallState.ENDED,
    (CallState.SEND_CLOSED, CallStep.RECEIVE_CLOSE): CallState.ENDED,
    (CallState.SEND_CLOSED, CallStep.END): CallState.ENDED,
    (CallState.RECEIVE_CLOSED, CallStep.SEND_CLOSE): CallState.ENDED,
    (CallState.RECEIVE_CLOSED, CallStep.END): CallState.ENDED,
    (CallState.ENDED, CallStep.INVOKE): CallState.OPEN,
}
