"""Who may still send on a yamux stream: four states and the table between them.  Layer L1.

Acknowledgement is no state of its own: a stream may carry data, and even end, before its ACK arrives.
Used by: rpc/yamux.py.
"""

import enum
from typing import Final


class StreamState(enum.Enum):
    """The life of one stream, seen from our side."""

    OPEN = "both sides may send"
    LOCAL_CLOSED = "we sent FIN"
    REMOTE_CLOSED = "the peer sent FIN"
    CLOSED = "forgotten: both sent FIN, or one sent RST"


class StreamStep(enum.Enum):
    """What moves it."""

    SEND_FIN = "we end our direction"
    RECEIVE_FIN = "the peer ends its direction"
    RESET = "either side drops the stream"


# A pair that is missing is a fault: of ours for SEND_FIN, of the peer for RECEIVE_FIN.  Genuine peers, too, end the
# whole session over a second FIN.
TRANSITIONS: Final = {
    (StreamState.OPEN, StreamStep.SEND_FIN): StreamState.LOCAL_CLOSED,
    (StreamState.OPEN, StreamStep.RECEIVE_FIN): StreamState.REMOTE_CLOSED,
    (StreamState.OPEN, StreamStep.RESET): StreamState.CLOSED,
    (StreamState.LOCAL_CLOSED, StreamStep.RECEIVE_FIN): StreamState.CLOSED,
    (StreamState.LOCAL_CLOSED, StreamStep.RESET): StreamState.CLOSED,
    (StreamState.REMOTE_CLOSED, StreamStep.SEND_FIN): StreamState.CLOSED,
    (StreamState.REMOTE_CLOSED, StreamStep.RESET): StreamState.CLOSED,
}
