"""What changes.py is given and gives: frozen values, no connection behind them (layer L2)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final

from tailnet.errors import AdministrationError, Fault
from tailnet.store.administration.kinds import Kind
from tailnet.store.definitions import NONE as NO_DEFINITIONS
from tailnet.store.definitions import SeedDefinitions

_ETAG_HEX_DIGITS: Final = 32  # 128 bits: no two states of one row meet by chance


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, for the account.  `kind`: `token`, one of administrators, or `local`, of this machine."""

    kind: str
    name: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """What the caller thinks of the thing: If-Match and If-None-Match of RFC 9110.  By default nothing."""

    etags: frozenset[str] | None = None  # it has one of these
    must_exist: bool = False
    must_be_new: bool = False

    def check(self, kind: Kind, etag: str | None) -> None:
        """`etag`: its present one, None if it does not exist.  Raises AdministrationError."""
        if self.must_be_new and etag is not None:
            raise AdministrationError(Fault.STALE, f"this {kind.name} exists already, and If-None-Match wants none")
        if etag is None and (self.must_exist or self.etags is not None):
            raise AdministrationError(Fault.STALE, f"there is no such {kind.name}, and If-Match wants one")
        if self.etags is not None and etag not in self.etags:
            raise AdministrationError(
                Fault.STALE, f'this {kind.name} was changed meanwhile, its ETag is "{etag}" now: read it again'
            )


ANY: Final = Match()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What something shall be.  `values`: by column; what is absent stays, or is `if_new` of a new one."""

    id: Any
    values: Mapping[str, Any]
    if_new: Mapping[str, Any] = field(default_factory=dict)
    must_exist: bool = False
    match: Match = ANY
    definitions: SeedDefinitions = NO_DEFINITIONS


class Result(Enum):
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one Wanted: `error`, or the others."""

    id: Any
    result: Result = Result.UNCHANGED
    etag: str = ""
    error: AdministrationError | None = None


def etag_of(kind: Kind, row: Mapping[str, Any]) -> str:
    """Of what administrators set, so that an agent's reports change it never; the same on every server.

    Made of the state and not of a time of change: two changes within a microsecond, or a clock that went back, would
    give two states one name.
    """
    state = [row[name] for name in kind.columns] + ([row[kind.digest].hex()] if kind.digest else [])
    text = json.dumps(state, default=_plain, sort_keys=True)
    return hashlib.sha256(f"{kind.name} {kind.ident(row)} {text}".encode("utf-8", "replace")).hexdigest()[
        :_ETAG_HEX_DIGITS
    ]


def _plain(value: object) -> Any:
    if isinstance(value, frozenset):
        return sorted(str(each.value) for each in value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
