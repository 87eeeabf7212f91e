"""Apps, scripts and metadata descriptions as seeds give them: in the API's spelling, checked, complete (layer L2).

Called by seed.py for each agent; importing.py writes what comes out; manifests and the API read it.
Every key but those that name a thing may be left out and has the API's empty value then.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from derp.text import error_text
from tailnet.store.problems import Problems, kind
from tailnet.store.reports import EXTERNAL_LOG_SOURCE, MAX_METADATA_KEYS_PER_AGENT

# Of each sort; templates have a handful.
MAX_ITEMS: Final = MAX_METADATA_KEYS_PER_AGENT
# All definitions of an agent as JSON: a manifest is one message of at most 4 MiB, in which the DERP map stands too.
MAX_DEFINITION_BYTES: Final = 2 * 1024 * 1024
MAX_NAME_CHARS: Final = 256
MAX_LINE_CHARS: Final = 4096  # URLs, paths, icons
MAX_SCRIPT_CHARS: Final = 1024 * 1024
_MAX_INTEGER: Final = (1 << 31) - 1
_MAX_NANOSECONDS: Final = (1 << 63) - 1

Parse = Callable[[object], Any]


@dataclass(frozen=True, slots=True)
class SeedItem:
    """One definition.  `key`: the id of an app or a script, the key of metadata."""

    key: UUID | str
    definition: Mapping[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class SeedDefinitions:
    """What a seed says of one agent.  A list is the whole list; where it is None, what is there stays."""

    apps: Sequence[SeedItem] | None = None
    scripts: Sequence[SeedItem] | None = None
    metadata: Sequence[SeedItem] | None = None


NONE: Final = SeedDefinitions()


def read_definitions(
    agent: Mapping[str, Any], place: str, problems: Problems, known: Callable[[Any, str, Sequence[str]], None]
) -> SeedDefinitions:
    """The definitions of one agent of a seed.  Mistakes go to `problems`, unknown keys to `known`."""
    if not agent.keys() & KINDS.keys():
        return NONE
    reader = _Definitions(problems, known)
    lists = {sort: reader.items(agent[sort], f"{place}.{sort}", sort) for sort in KINDS if sort in agent}
    size = sum(definition_bytes(item.definition) for items in lists.values() for item in items)
    if size > MAX_DEFINITION_BYTES:
        problems.add(place, f"has {size:,} bytes of apps, scripts and metadata, at most {MAX_DEFINITION_BYTES:,} fit")
    return SeedDefinitions(**lists)


def read_app(value: Mapping[str, Any]) -> Mapping[str, Any] | tuple[str, str]:
    """One app by itself, without its id, made complete; or the key that is wrong and why."""
    return read_one("apps", value)


def definition_bytes(definition: Mapping[str, Any]) -> int:
    """What a definition takes of MAX_DEFINITION_BYTES."""
    return len(json.dumps(definition))


def read_one(sort: str, value: Mapping[str, Any]) -> Mapping[str, Any] | tuple[str, str]:
    """One app or one script by itself, as `read_app`; `sort`: `apps` or `scripts`."""
    problems = Problems("")
    item = _Definitions(problems, lambda *_: None)._item({"id": str(_ANY_ID), **value}, "", sort)
    for place, reason in problems.found:
        return place.removeprefix("."), reason
    assert item is not None
    return item.definition


class _Definitions:
    def __init__(self, problems: Problems, known: Callable[[Any, str, Sequence[str]], None]) -> None:
        self._problems = problems
        self._known = known

    def items(self, value: object, place: str, sort: str) -> list[SeedItem]:
        if not isinstance(value, list):
            self._problems.add(place, f"wants a list, got {kind(value)}")
            return []
        if len(value) > MAX_ITEMS:
            self._problems.add(place, f"has {len(value)} items, at most {MAX_ITEMS} are possible")
            return []
        found = [self._item(each, f"{place}[{at}]", sort) for at, each in enumerate(value)]
        items = [item for item in found if item is not None]
        for what in ("slug", "key"):
            self._unique([item for item in items if what in item.definition], what)
        return items

    def _item(self, value: object, place: str, sort: str) -> SeedItem | None:
        before = len(self._problems)
        definition = self._object(value, place, KINDS[sort])
        if len(self._problems) > before:
            return None
        check = definition.get("healthcheck")
        if check is not None and check["url"] and not check["interval"]:
            # An agent makes a ticker of it, and a ticker of nought is a crash.
            self._problems.add(f"{place}.healthcheck.interval", "wants the seconds between two checks")
        return SeedItem(definition.pop("id") if "id" in definition else definition["key"], definition, place)

    def _object(self, value: object, place: str, keys: Mapping[str, tuple[Parse, Any]]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._problems.add(place, f"wants an object with {', '.join(keys)}, got {kind(value)}")
            return {}
        self._known(value, place, list(keys))
        found: dict[str, Any] = {}
        for key, (parse, default) in keys.items():
            here = f"{place}.{key}"
            if key == "healthcheck":
                found[key] = self._object(value.get(key, {}), here, _HEALTHCHECK)
            elif key in value:
                try:
                    found[key] = parse(value[key])
                except ValueError as error:
                    self._problems.add(here, error_text(error))
            elif default is _WANTED:
                self._problems.add(here, "is missing")
            else:
                found[key] = default
        return found

    def _unique(self, items: Sequence[SeedItem], what: str) -> None:
        first: dict[str, SeedItem] = {}
        for item in items:
            other = first.setdefault(item.definition[what], item)
            if other is not item:
                self._problems.add(f"{item.place}.{what}", f"clashes with {other.place}.{what}: each needs its own")


def _text(limit: int, *, empty: bool = True, lines: bool = False) -> Parse:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"wants text, got {kind(value)}")
        if not value and not empty:
            raise ValueError("is empty")
        if len(value) > limit:
            raise ValueError(f"has {len(value)} characters, at most {limit} are possible")
        if lines:
            # Scripts hold whatever shells read; halves of surrogate pairs no wire and no database takes.
            if "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
                raise ValueError("has characters that no script has: remove them")
        elif not value.isprintable():
            raise ValueError("has characters that cannot be printed: remove them")
        return value

    return parse


def _word(*words: str) -> Parse:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"wants one of {', '.join(words)}, got {kind(value)}")
        return str(value)

    return parse


def _number(maximum: int) -> Parse:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= maximum:
            raise ValueError(f"wants a whole number from 0 to {maximum}, got {kind(value)}")
        return value

    return parse


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"wants true or false, got {kind(value)}")
    return value


def _id(value: object) -> UUID:
    try:
        found = UUID(value) if isinstance(value, str) else UUID(int=0)
    except ValueError:
        found = UUID(int=0)
    if not found.int:
        raise ValueError("wants a UUID other than the nil one, such as 01234567-89ab-cdef-0123-456789abcdef")
    return found


def _id_text(value: object) -> str:
    return str(_id(value))


_WANTED: Final = object()
_ANY_ID: Final = UUID(int=1)
_NAME: Final = _text(MAX_NAME_CHARS)
_LINE: Final = _text(MAX_LINE_CHARS)
_SCRIPT: Final = _text(MAX_SCRIPT_CHARS, lines=True)
_HEALTHCHECK: Final[Mapping[str, tuple[Parse, Any]]] = {
    "url": (_LINE, ""),
    "interval": (_number(_MAX_INTEGER), 0),  # seconds
    "threshold": (_number(_MAX_INTEGER), 0),
}
# Sort of definition -> key -> how it is read, and its value where a seed leaves it out.
KINDS: Final[Mapping[str, Mapping[str, tuple[Parse, Any]]]] = {
    "apps": {
        "id": (_id, _WANTED),
        "url": (_LINE, ""),
        "external": (_flag, False),
        "slug": (_text(MAX_NAME_CHARS, empty=False), _WANTED),
        "display_name": (_NAME, ""),
        "command": (_SCRIPT, ""),
        "icon": (_LINE, ""),
        "subdomain": (_flag, False),
        "subdomain_name": (_LINE, ""),
        "sharing_level": (_word("owner", "authenticated", "organization", "public"), "owner"),
        "healthcheck": (lambda value: value, None),
        "group": (_NAME, ""),
        "hidden": (_flag, False),
        "open_in": (_word("slim-window", "tab"), "slim-window"),
        "tooltip": (_text(MAX_LINE_CHARS, lines=True), ""),
    },
    "scripts": {
        "id": (_id, _WANTED),
        "log_source_id": (_id_text, str(EXTERNAL_LOG_SOURCE)),
        "log_path": (_LINE, ""),
        "script": (_SCRIPT, ""),
        "cron": (_LINE, ""),
        "run_on_start": (_flag, False),
        "run_on_stop": (_flag, False),
        "start_blocks_login": (_flag, False),
        "timeout": (_number(_MAX_NANOSECONDS), 0),  # nanoseconds, as the API has it
        "display_name": (_NAME, ""),
    },
    "metadata": {
        "display_name": (_NAME, ""),
        "key": (_text(MAX_NAME_CHARS, empty=False), _WANTED),
        "script": (_SCRIPT, ""),
        # Passed on as they are: both ends of the wire read the number in their own way.
        "interval": (_number(_MAX_NANOSECONDS), 0),
        "timeout": (_number(_MAX_NANOSECONDS), 0),
    },
}
