"""JSON lines: one thing a line, as bulk changes take them and exports give them (layer L3).

    {"kind": "agent", "id": "...", "workspace_id": "...", "name": "main", "token_sha256": "..."}

A line is the whole of its thing, as the body of a PUT is.  Lines refer to what stands above them, or is there already.
An export has digests in place of tokens, so it is read by nobody who could come in with it; an import of it makes the
same users, tokens, workspaces and agents again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Union
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError, create_model

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.models import Given
from tailnet.services.administration.resources import RESOURCES, Resource, mistakes
from tailnet.store.administration.audit import shown_id
from tailnet.store.administration.reading import Exported
from tailnet.store.administration.values import Wanted
from tailnet.store.definitions import KINDS as DEFINITIONS
from tailnet.store.store import Store

# An agent with all its definitions; the bodies of single things have the same bound.
MAX_LINE_BYTES: Final = 1024 * 1024


def _line_model(resource: Resource) -> type[Given]:
    fields: dict[str, Any] = {"kind": (Literal[resource.name], ...), "id": (str, ...)}
    made = create_model(f"{resource.name.capitalize()}Line", __base__=resource.given, __doc__=resource.given.__doc__,
                        **fields)  # fmt: skip
    assert issubclass(made, Given)
    return made


LINE_MODELS: Final[Sequence[type[Given]]] = [_line_model(each) for each in RESOURCES.values()]
_union: Any = Union[tuple(LINE_MODELS)]  # noqa: UP007  # a union of as many as there are
_ANY_LINE: Final[TypeAdapter[Any]] = TypeAdapter(Annotated[_union, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Line:
    """One line that makes sense by itself.  `token`: what a new one gets if the line brought none."""

    resource: Resource
    id: str
    wanted: Wanted
    token: str = field(default="", repr=False)


def read_line(text: bytes) -> Line:
    """Raises AdministrationError with every mistake of the line."""
    try:
        body = _ANY_LINE.validate_json(text)
    except ValidationError as error:
        raise mistakes(error) from None
    resource = RESOURCES[body.kind]
    wanted, made = resource.wanted(resource.parse_id(body.id), body)
    return Line(resource, shown_id(wanted.id), wanted, made.text if made is not None else "")


class LineCutter:
    """Cuts what comes in pieces into lines.  Of one that is too long nothing is kept; its place is None."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._begun = bytearray()
        self._is_too_long = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that ended in `data`."""
        *ended, rest = data.split(b"\n")
        lines = [self._end(part) for part in ended]
        self._keep(rest)
        return lines

    def finish(self) -> list[bytes | None]:
        """The last line, if no newline ended it."""
        return [self._end(b"")] if self._begun or self._is_too_long else []

    def _keep(self, part: bytes) -> None:
        if self._is_too_long or len(self._begun) + len(part) > self._max_bytes:
            self._is_too_long = True
            self._begun.clear()
        else:
            self._begun += part

    def _end(self, part: bytes) -> bytes | None:
        self._keep(part)
        line = None if self._is_too_long else bytes(self._begun)
        self._begun.clear()
        self._is_too_long = False
        return line


def too_long() -> AdministrationError:
    return AdministrationError(Fault.TOO_LARGE, f"this line is too long: {MAX_LINE_BYTES:,} bytes are possible")


def export_lines(store: Store) -> Iterator[bytes]:
    """All that administrators set, of one moment; holds one of the store's readers meanwhile.  Blocks."""
    for exported in store.administration.everything():
        yield json.dumps(_line(exported), ensure_ascii=False, default=_plain).encode("utf-8", "replace") + b"\n"


def _line(exported: Exported) -> dict[str, Any]:
    resource = RESOURCES[exported.kind.name]
    shown = resource.to_shown(exported.row)
    fields = {name: shown[name] for name in resource.given.model_fields if shown.get(name) is not None}
    line: dict[str, Any] = {"kind": resource.name, "id": shown["id"], **fields}
    if exported.kind.digest:
        name = "token_sha256" if "token_sha256" in resource.given.model_fields else "secret_sha256"
        line[name] = exported.row[exported.kind.digest].hex()
    if resource.name == "agent":
        line |= {sort: exported.definitions.get(sort, []) for sort in DEFINITIONS}
    return line


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    assert isinstance(value, UUID)
    return str(value)
