"""On what terms a client is in: until when, and for how many bytes.  Layer L1.

Whoever is admitted without terms stays.  A ticket ends, an invitation ends and has bytes, a key that nobody knows yet
has a minute.  server/guests.py warns clients of it and sends them away.  Whoever admits may say whose client it is.
"""

import math
import re
from dataclasses import dataclass
from typing import Final, Protocol

from derp.text import printable

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def is_tenant_name(text: str) -> bool:
    """Whether a tenant may be called so."""
    return _TENANT.fullmatch(text) is not None


def tenant_name(value: object) -> str:
    """The name of a tenant, wherever one is given.  Raises ValueError: what it has to be."""
    if not isinstance(value, str) or not is_tenant_name(value):
        raise ValueError(
            f"wants a name of up to 63 letters, digits, dots and dashes, got {printable(str(value), 80)!r}"
        )
    return value


class Account(Protocol):
    """Bytes that may be relayed, for all connections that share it."""

    @property
    def left(self) -> int:
        """Bytes that are left; below zero when more went in the last receive."""
        ...

    def spend(self, count: int) -> None:
        """So many bytes were relayed."""
        ...


class Allowance:
    """An account in memory, of one client."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        self.left -= count


@dataclass(frozen=True, slots=True)
class Terms:
    """Why a client is in, for how long and how much.

    `what` begins the sentences that its user sees: "the ticket of this machine".  `ends_at` is a Unix time.
    `is_trial`: the key may become known meanwhile, and then it has no terms.  `tenant`: whose client it is; empty:
    they do not say.
    """

    what: str
    ends_at: float = math.inf
    account: Account | None = None
    is_trial: bool = False
    tenant: str = ""
