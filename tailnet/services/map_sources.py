"""Where DERP maps come from: files that are watched, URLs that are polled (layer L3).

A source delivers text, and only when there is something new.  derp_maps.py decides whether the text is a map, and what
happens when it is not.
"""

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Protocol

import trio

from derp.config.files import FileMark, mark_of
from derp.text import error_text, fit_to_show
from tailnet.errors import TransportError
from tailnet.transport.fetch import Fetcher

# The public map of the field's largest fleet has 30 KB.
MAX_MAP_BYTES: Final = 4 * 1024 * 1024
# A change has to reach clients within a second; a stat every quarter of one costs nothing and leaves them the rest.
FILE_POLL_SECONDS: Final = 0.25
# The rhythm in which the reference looks at its own map.  An unchanged map costs its server one 304.
URL_POLL_SECONDS: Final = 5.0
URL_TIMEOUT_SECONDS: Final = 10.0


class SourceFailed(Exception):
    """Nothing could be read.  The text says why."""


class MapSource(Protocol):
    """One place that a map comes from."""

    name: str  # for logs and pages
    poll_seconds: float

    async def open(self, stack: AsyncExitStack) -> None:
        """Make ready; what has to be closed goes onto the stack."""
        ...

    async def read(self, *, force: bool = False) -> bytes | None:
        """The map's text if it may have changed since the last `read`, or in any case with `force`; else None.

        Raises SourceFailed.
        """
        ...


class FileSource:
    """A map file.  Replacing it by a rename is best; a file caught half-written is read again at the next look."""

    def __init__(self, path: Path, poll_seconds: float = FILE_POLL_SECONDS) -> None:
        self.name = str(path)
        self.poll_seconds = poll_seconds
        self._path = path
        self._seen: FileMark | None = None

    async def open(self, stack: AsyncExitStack) -> None:
        """Nothing to open."""

    async def read(self, *, force: bool = False) -> bytes | None:
        # In a thread, since a map may lie on a network disk, and network disks hang.
        try:
            return await trio.to_thread.run_sync(self._read, force)
        except OSError as error:
            self._seen = None
            raise SourceFailed(f"cannot be read: {error_text(error)}") from None

    def _read(self, force: bool) -> bytes | None:
        if mark_of(self._path.stat()) == self._seen and not force:
            return None
        with self._path.open("rb") as file:
            text = file.read(MAX_MAP_BYTES + 1)
            mark = mark_of(os.fstat(file.fileno()))
        if len(text) > MAX_MAP_BYTES:
            raise OSError(None, f"it has more than {MAX_MAP_BYTES} bytes: is it the right file?")
        # Of the file that was read: another may have taken its place since it was looked at above.
        self._seen = mark
        return text


class UrlSource:
    """A map behind http or https."""

    def __init__(self, url: str, poll_seconds: float = URL_POLL_SECONDS) -> None:
        self.name = fit_to_show(url)
        self.poll_seconds = poll_seconds
        self._fetcher = Fetcher(url, timeout_seconds=URL_TIMEOUT_SECONDS, max_bytes=MAX_MAP_BYTES)

    async def open(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self._fetcher)

    async def read(self, *, force: bool = False) -> bytes | None:
        try:
            return await self._fetcher.fetch(force=force)
        except TransportError as error:
            raise SourceFailed(str(error)) from None
