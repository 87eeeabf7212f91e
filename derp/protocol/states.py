"""The states of a client's DERP connection, and of a relay's handshake with one client.  Layer L1.

Each table names, for every state and every input, the next state or whose fault the input is.  A fault of the peer
closes the core; a fault of ours changes nothing.  Used by protocol/connection.py, and by nobody else.
"""

import enum
from typing import Final, TypeAlias


class Fault(enum.Enum):
    """An input that must not happen in a state."""

    REMOTE = "the peer broke the protocol"
    LOCAL = "we misused the core"


class ClientState(enum.Enum):
    """Where a client stands.  It may send as soon as its ClientInfo is out, and need not wait for ServerInfo."""

    EXPECT_SERVER_KEY = enum.auto()
    EXPECT_SERVER_INFO = enum.auto()  # a client with fast start begins here
    OPEN = enum.auto()
    CLOSED = enum.auto()


class ClientInput(enum.Enum):
    """What can happen to a client."""

    SERVER_KEY = enum.auto()
    SERVER_INFO = enum.auto()
    OTHER_FRAME = enum.auto()  # known or not
    SEND = enum.auto()
    END = enum.auto()  # of the stream


class _ByIdentity(enum.Enum):
    """A key of a table that each login asks six times: Enum's own hash is 0.25 us of Python."""

    __hash__ = object.__hash__


class ServerState(_ByIdentity):
    """Where a relay stands with one client that logs in."""

    EXPECT_CLIENT_INFO = enum.auto()
    JUDGING = enum.auto()  # the client is known; the core's owner has to accept or close
    ADMITTED = enum.auto()  # the handshake is over; others read the client's frames
    CLOSED = enum.auto()


class ServerInput(_ByIdentity):
    """What can happen to a relay's side of a handshake."""

    CLIENT_INFO = enum.auto()
    OTHER_FRAME = enum.auto()
    ACCEPT = enum.auto()
    CLOSE = enum.auto()
    END = enum.auto()


ClientTable: TypeAlias = dict[ClientState, dict[ClientInput, ClientState | Fault]]
ServerTable: TypeAlias = dict[ServerState, dict[ServerInput, ServerState | Fault]]

CLIENT_TABLE: Final[ClientTable] = {
    ClientState.EXPECT_SERVER_KEY: {
        ClientInput.SERVER_KEY: ClientState.EXPECT_SERVER_INFO,
        ClientInput.SERVER_INFO: Fault.REMOTE,
        ClientInput.OTHER_FRAME: Fault.REMOTE,
        ClientInput.SEND: Fault.LOCAL,
        ClientInput.END: Fault.REMOTE,  # a relay that refuses a client just closes: the caller must hear of it
    },
    ClientState.EXPECT_SERVER_INFO: {
        # A relay greets even a client that knows its key already.
        ClientInput.SERVER_KEY: ClientState.EXPECT_SERVER_INFO,
        ClientInput.SERVER_INFO: ClientState.OPEN,
        ClientInput.OTHER_FRAME: ClientState.EXPECT_SERVER_INFO,
        ClientInput.SEND: ClientState.EXPECT_SERVER_INFO,
        ClientInput.END: Fault.REMOTE,
    },
    ClientState.OPEN: {
        ClientInput.SERVER_KEY: ClientState.OPEN,
        ClientInput.SERVER_INFO: ClientState.OPEN,  # a relay may change its token bucket
        ClientInput.OTHER_FRAME: ClientState.OPEN,
        ClientInput.SEND: ClientState.OPEN,
        ClientInput.END: ClientState.CLOSED,
    },
    ClientState.CLOSED: {
        ClientInput.SERVER_KEY: Fault.LOCAL,
        ClientInput.SERVER_INFO: Fault.LOCAL,
        ClientInput.OTHER_FRAME: Fault.LOCAL,
        ClientInput.SEND: Fault.LOCAL,
        ClientInput.END: ClientState.CLOSED,
    },
}

SERVER_TABLE: Final[ServerTable] = {
    ServerState.EXPECT_CLIENT_INFO: {
        ServerInput.CLIENT_INFO: ServerState.JUDGING,
        ServerInput.OTHER_FRAME: Fault.REMOTE,
        ServerInput.ACCEPT: Fault.LOCAL,
        ServerInput.CLOSE: ServerState.CLOSED,
        ServerInput.END: ServerState.CLOSED,
    },
    ServerState.JUDGING: {
        # The owner must not read on before it has decided: what nobody reads needs no bound here.
        ServerInput.CLIENT_INFO: Fault.LOCAL,
        ServerInput.OTHER_FRAME: Fault.LOCAL,
        ServerInput.ACCEPT: ServerState.ADMITTED,
        ServerInput.CLOSE: ServerState.CLOSED,
        ServerInput.END: ServerState.CLOSED,
    },
    ServerState.ADMITTED: {
        ServerInput.CLIENT_INFO: Fault.LOCAL,
        ServerInput.OTHER_FRAME: Fault.LOCAL,
        ServerInput.ACCEPT: Fault.LOCAL,
        ServerInput.CLOSE: ServerState.CLOSED,
        ServerInput.END: ServerState.CLOSED,
    },
    ServerState.CLOSED: {
        ServerInput.CLIENT_INFO: Fault.LOCAL,
        ServerInput.OTHER_FRAME: Fault.LOCAL,
        ServerInput.ACCEPT: Fault.LOCAL,
        ServerInput.CLOSE: ServerState.CLOSED,
        ServerInput.END: ServerState.CLOSED,
    },
}
