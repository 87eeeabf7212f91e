"""What a client of the reconnecting PTY says: which terminal it wants, then keys and sizes.  Layer L3; no I/O.

First a length, u16 little endian, and so many bytes of JSON with Go's names: {"ID", "Height", "Width", "Command",
"Container", "ContainerUser", "BackendType"}; older clients know the first four alone.  Then JSON objects without a
separator, {"data", "height", "width"}, of which each key may be missing.  The other direction is the terminal's output
as it is.  As Go's decoder does: names in any case, of a name given twice the last, half characters replaced.
Next hop: pty.py.
"""

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from derp.text import error_text, without_halves
from tailnet.errors import RemoteProtocolError

# What somebody pastes comes in one object; a terminal takes 4 KiB at a time, so that more is a file in the wrong place.
MAX_REQUEST_BYTES: Final = 1024 * 1024
_LENGTH: Final = struct.Struct("<H")
_MAX_U16: Final = 0xFFFF

# Possessive: a half object of a MiB is looked at once, whatever it consists of.
_IN_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_FLAT: Final = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_SPACES: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Attach:
    """Which terminal a client wants.  A size of nought says that the client does not know it."""

    terminal_id: UUID
    height: int = 0
    width: int = 0
    command: str = ""
    container: str = ""
    container_user: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """Keys, a new size, or both.  A size of nought in either direction changes nothing."""

    data: bytes = b""
    height: int = 0
    width: int = 0


class PtyFrames:
    """One client's side.  Raises RemoteProtocolError, after which no more may be given."""

    def __init__(self) -> None:
        self.attach: Attach | None = None
        """What the client wants, once it has said so."""
        self._bytes = bytearray()
        self._at = 0  # up to here the object in hand was looked at
        self._is_in_string = False

    def receive_data(self, data: bytes) -> list[Request]:
        """The requests that these bytes complete."""
        self._bytes += data
        if self.attach is None:
            self.attach = self._take_attach()
        requests: list[Request] = []
        if self.attach is not None:
            while (text := self._take_object()) is not None:
                requests.append(_request(text))
        return requests

    def _take_attach(self) -> Attach | None:
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        text = bytes(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return _attach(text)

    def _take_object(self) -> bytes | None:
        if self._at == 0:
            self._bytes = self._bytes.lstrip(_SPACES)
            if not self._bytes:
                return None
            if self._bytes[0] != ord("{"):
                raise RemoteProtocolError("a request of a terminal is a JSON object")
            self._at = 1
        end = self._object_end()
        if end is None:
            if len(self._bytes) > MAX_REQUEST_BYTES:
                raise RemoteProtocolError(f"a request of a terminal is larger than {MAX_REQUEST_BYTES} bytes")
            return None
        text = bytes(self._bytes[:end])
        del self._bytes[:end]
        self._at = 0
        return text

    def _object_end(self) -> int | None:
        """Behind the object that begins the buffer; each byte is looked at once."""
        size = len(self._bytes)
        while True:
            if self._is_in_string:
                self._at = _at_end_of(_IN_STRING, self._bytes, self._at)
                if self._at == size or self._bytes[self._at] != ord('"'):  # a backslash whose character is to come
                    return None
                self._is_in_string = False
                self._at += 1
            self._at = _at_end_of(_FLAT, self._bytes, self._at)
            if self._at == size:
                return None
            found = self._bytes[self._at]
            self._at += 1
            if found == ord("}"):
                return self._at
            if found != ord('"'):
                raise RemoteProtocolError("a request of a terminal has texts and numbers, nothing nested")
            self._is_in_string = True


def _at_end_of(pattern: re.Pattern[bytes], text: bytearray, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None  # each of them matches nothing too
    return found.end()


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a request of a terminal is no JSON: {error_text(error)}") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("a request of a terminal is a JSON object")
    return {name.casefold(): each for name, each in value.items()}


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if found is None:  # as Go reads null: nothing was said
        return ""
    if not isinstance(found, str):
        raise RemoteProtocolError(f"a request of a terminal: {name} is a text")
    return without_halves(found)


def _size(value: dict[str, Any], name: str) -> int:
    found = value.get(name)
    if found is None:
        return 0
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= _MAX_U16:
        raise RemoteProtocolError(f"a request of a terminal: {name} is a number from 0 to {_MAX_U16}")
    return found


def _attach(text: bytes) -> Attach:
    value = _object(text)
    try:
        terminal_id = UUID(_text(value, "id"))
    except ValueError:
        raise RemoteProtocolError("a terminal is named by a UUID") from None
    return Attach(
        terminal_id,
        _size(value, "height"),
        _size(value, "width"),
        _text(value, "command"),
        _text(value, "container"),
        _text(value, "containeruser"),
    )


def _request(text: bytes) -> Request:
    value = _object(text)
    return Request(_text(value, "data").encode(), _size(value, "height"), _size(value, "width"))
