"""A client of the reconnecting PTY: what `workspacesdk` and a browser send, and the output as it comes."""

import json
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

from tailnet.node.streams import TunnelStream


def wish_bytes(terminal_id: UUID | str, height: int = 24, width: int = 80, command: str = "", **more: Any) -> bytes:
    """The first frame, with Go's names."""
    wish = {"ID": str(terminal_id), "Height": height, "Width": width, "Command": command, **more}
    text = json.dumps(wish).encode()
    return struct.pack("<H", len(text)) + text


def request_bytes(data: str = "", height: int = 0, width: int = 0) -> bytes:
    return json.dumps({"data": data, "height": height, "width": width}).encode()


class TerminalClient:
    """Attached to a terminal; `shown` has all that came."""

    def __init__(self, stream: TunnelStream) -> None:
        self.stream = stream
        self.shown = bytearray()

    async def type(self, data: str = "", height: int = 0, width: int = 0) -> None:
        await self.stream.send_all(request_bytes(data, height, width))

    async def wait_shown(self, text: bytes) -> None:
        """Until that was shown; AssertionError if the terminal ends before."""
        at = 0
        while self.shown.find(text, at) < 0:
            at = max(0, len(self.shown) - len(text))
            data = await self.stream.receive_some()
            assert data, f"the terminal ended, and showed {bytes(self.shown[-500:])!r}"
            self.shown += data

    async def wait_end(self) -> bytes:
        """All that was shown."""
        while data := await self.stream.receive_some():
            self.shown += data
        return bytes(self.shown)


def is_running(pid: int) -> bool:
    """A process that ended may be there still: nobody waits for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
