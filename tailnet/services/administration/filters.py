"""Filters of lists, from text to what columns hold (layer L3)."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from derp.text import error_text
from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.models import STATUS_NUMBERS
from tailnet.services.administration.resources import Resource
from tailnet.store.rows import Role
from tailnet.types import PeerID

_MAX_TEXT_CHARS: Final = 256


def parse_filters(resource: Resource, given: Mapping[str, str]) -> dict[str, Any]:
    """Filters of a list of things.  Raises AdministrationError with every mistake."""
    return _parse(given, {name: _parser(name) for name in resource.kind.filters})


def parse_audit_filters(given: Mapping[str, str]) -> dict[str, Any]:
    """Filters of the account.  Raises AdministrationError with every mistake."""
    return _parse(given, _AUDIT)


def parse_time(text: str) -> datetime:
    """RFC 3339, or a day; without a zone it is UTC.  Raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("wants a time such as 2026-01-31T08:00:00Z, or a day") from None


def _parse(given: Mapping[str, str], parsers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    for name, text in given.items():
        if name not in parsers:
            problems.append((name[:80], f"is no filter: there are {', '.join(parsers)}"))
            continue
        try:
            found[name] = parsers[name](text)
        except ValueError as error:
            problems.append((name, error_text(error)))
    if problems:
        raise AdministrationError(Fault.INVALID, "some filters make no sense", problems)
    return found


def _text(text: str) -> str:
    if len(text) > _MAX_TEXT_CHARS or not text.isprintable():
        raise ValueError(f"wants at most {_MAX_TEXT_CHARS} printable characters")
    return text


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("wants true or false")
    return text == "true"


def _role(text: str) -> Role:
    words = [each.value for each in Role]
    if text not in words:
        raise ValueError(f"wants one of {', '.join(words)}")
    return Role(text)


def _status(text: str) -> int:
    if text not in STATUS_NUMBERS:
        raise ValueError(f"wants one of {', '.join(STATUS_NUMBERS)}")
    return STATUS_NUMBERS[text]


def _id(text: str) -> UUID:
    return UUID(_peer(text).hex())


def _peer(text: str) -> PeerID:
    try:
        return PeerID.parse(text.lower())
    except ValueError:
        raise ValueError("wants a UUID") from None


def _parser(name: str) -> Callable[[str], Any]:
    if name in _PARSERS:
        return _PARSERS[name]
    return _id if name.endswith("_id") else _text


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "agent_id": _peer,
    "parent_id": _peer,
    "instance_id": _text,
    "active": _flag,
    "role": _role,
    "status": _status,
    "expires_before": parse_time,
}
_AUDIT: Final[Mapping[str, Callable[[str], Any]]] = {
    "kind": _text,
    "target": _text,
    "actor": _text,
    "action": _text,
    "since": parse_time,
    "until": parse_time,
}
