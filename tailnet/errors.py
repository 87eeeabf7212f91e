"""The error tree of the tailnet (layer L0).  It grows on the relay's: one `except DerpError` catches both.

DerpError                     derp/errors.py
|- ProtocolError                only cores raise these; reused here, and named again below for importers
|  |- LocalProtocolError          we misused the core: nothing changed
|  `- RemoteProtocolError         the peer misbehaved: the core is dead
|     |- Flood                      it sent more than any honest peer does
|     `- PeerSilent                 it did not answer a keep-alive, or never acknowledged a stream
|- TransportError, ConfigError, ListenError  as they are
`- TailnetError
   |- RpcError                  one RPC ended with a code and a sentence; the connection lives on
   |  |- Unimplemented            code 12: genuine peers carry on without that RPC
   |  `- NotAuthorised            the coordinator does not let this peer do what it asks for
   |- StoreError                durable state could not be read or written
   |  `- StoreVersionError        its schema is newer than this program
   |- SecretsError              what is encrypted in the store cannot be read or written: a key is missing
   |- SeedError                 a file to import is wrong: every mistake with its place
   `- AdministrationError       an administrator asked for what cannot be: nothing was changed
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from derp.errors import (
    ConfigError,
    DerpError,
    Flood,
    ListenError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    TransportError,
)

__all__ = [
    "CODE_UNIMPLEMENTED",
    "AdministrationError",
    "ConfigError",
    "DerpError",
    "Fault",
    "Flood",
    "ListenError",
    "LocalProtocolError",
    "MalformedField",
    "NotAuthorised",
    "PeerSilent",
    "ProtocolError",
    "RemoteProtocolError",
    "RpcError",
    "SecretsError",
    "SeedError",
    "StoreError",
    "StoreTrouble",
    "StoreVersionError",
    "TailnetError",
    "TransportError",
    "Unimplemented",
]

# The one code that genuine peers look at: they go on without the RPC.  Everything else is 0, "an error".
CODE_UNIMPLEMENTED: Final = 12


class TailnetError(DerpError):
    """Root of what this package adds."""


class PeerSilent(RemoteProtocolError):
    """The peer's bytes stopped making sense by their absence: a deadline of the protocol passed."""


class RpcError(TailnetError):
    """An RPC ended with an error.  A service raises it to answer so; a client gets it as the answer.

    `text` travels to the peer and into its log: no secrets, nothing of other peers.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.code = code

    def __str__(self) -> str:
        return f"{self.text} (code {self.code})" if self.code else self.text


class NotAuthorised(RpcError):
    """A coordinator ended a peer that asked for what it may not have; to ask again changes nothing."""


class Unimplemented(RpcError):
    """This server does not serve that RPC."""

    def __init__(self, text: str = "Unimplemented") -> None:
        super().__init__(text, CODE_UNIMPLEMENTED)


class MalformedField(TailnetError, ValueError):
    """A message was decoded, but a field of it makes no sense.  The text names field and reason."""


class StoreTrouble(Enum):
    """Why a store failed, as metrics and readiness name it."""

    LOCKED = "locked"  # somebody else holds a lock for too long
    READ_ONLY = "read_only"
    FULL = "full"
    REPLACED = "replaced"  # the file is another one than was opened
    DAMAGED = "damaged"
    UNREACHABLE = "unreachable"  # stopped, restarting, no route
    REFUSED = "refused"  # a wrong password, a database that is not there
    CROWDED = "crowded"  # no connection is free
    SLOW = "slow"  # a time-out
    CONFLICT = "conflict"  # another server wrote the same rows: again, and it works
    UNFIT = "unfit"  # a row that the store cannot hold: the others can be written
    OTHER = "other"


class StoreError(TailnetError):
    """The store failed; the text names the store and what to change, `trouble` is the same for programs."""

    def __init__(self, text: str, trouble: StoreTrouble = StoreTrouble.OTHER) -> None:
        super().__init__(text)
        self.trouble = trouble


class StoreVersionError(StoreError):
    """The database was written by a newer version of this program."""


class SecretsError(TailnetError):
    """Something cannot be encrypted or decrypted.  The text says which key is missing, and nothing of what it is."""


class SeedError(TailnetError):
    """A file to import is wrong; nothing of it was stored.

    `problems` has one line for each mistake, each with its place in the file; no line repeats a token.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Fault(Enum):
    """Why an administrator's change was refused.  The values are codes that programs act on."""

    INVALID = "invalid"  # a field, a filter or a cursor makes no sense
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"  # a name, a token or an id belongs to something else
    STALE = "precondition_failed"  # it is not what the caller thinks it is
    TOO_LARGE = "too_large"
    KEY_REUSED = "idempotency_key_reused"  # for another request


class AdministrationError(TailnetError):
    """A change that an administrator asked for was refused, and nothing of it was done.

    `problems`: fields with what is wrong with each.  Holds no secret.
    """

    def __init__(self, fault: Fault, detail: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__("\n".join([detail, *(f"{field}: {reason}" for field, reason in problems)]))
        self.fault = fault
        self.detail = detail
        self.problems = tuple(problems)
