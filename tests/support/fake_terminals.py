"""Port 2 of an agent that a test plays: terminals that outlive their connections, and a shell of five words.

Keys are shown as they come; a line that is typed is obeyed: `size` tells rows and columns, `color` shows one, `flood`
prints without end, `break` resets the connection, `exit` ends the terminal.
"""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import trio

from tailnet.node.streams import TunnelStream


@dataclass(eq=False)
class Terminal:
    """One terminal, and who is attached to it."""

    first: dict[str, Any]
    scroll_back: bytes = b""
    line: str = ""
    size: tuple[int, int] = (0, 0)
    attached: list[TunnelStream] = field(default_factory=list)
    flooded_bytes: int = 0


class Terminals:
    """`agent.serve_pty = Terminals().serve`."""

    def __init__(self) -> None:
        self.by_id: dict[str, Terminal] = {}
        self.requests: list[dict[str, Any]] = []
        self.broken_count = 0

    async def serve(self, stream: TunnelStream) -> None:
        """One connection."""
        held = b""
        while len(held) < 2 or len(held) < 2 + struct.unpack_from("<H", held)[0]:
            part = await stream.receive_some()
            if not part:
                return
            held += part
        end = 2 + struct.unpack_from("<H", held)[0]
        first = json.loads(held[2:end])
        terminal = self.by_id.setdefault(first["ID"], Terminal(first))
        terminal.size = first["Height"], first["Width"]
        terminal.attached.append(stream)
        try:
            await stream.send_all(terminal.scroll_back or b"$ ")
            terminal.scroll_back = terminal.scroll_back or b"$ "
            await self._read(stream, terminal, held[end:].decode())
        finally:
            terminal.attached.remove(stream)

    async def _read(self, stream: TunnelStream, terminal: Terminal, text: str) -> None:
        decoder = json.JSONDecoder()
        while True:
            while text:
                try:
                    request, at = decoder.raw_decode(text)
                except ValueError:
                    break  # its rest is on the way
                text = text[at:].lstrip()
                self.requests.append(request)
                if request.get("height") and request.get("width"):
                    terminal.size = request["height"], request["width"]
                for key in request.get("data", ""):
                    if not await self._press(stream, terminal, key):
                        return
            part = await stream.receive_some()
            if not part:
                return
            text += part.decode()

    async def _press(self, stream: TunnelStream, terminal: Terminal, key: str) -> bool:
        if key != "\r":
            terminal.line += key
            await self._print(terminal, key.encode())
            return True
        line, terminal.line = terminal.line, ""
        await self._print(terminal, b"\r\n")
        if line == "size":
            await self._print(terminal, f"{terminal.size[0]} rows, {terminal.size[1]} columns\r\n".encode())
        elif line == "flood":
            while True:
                await stream.send_all(b"x" * 1024)
                terminal.flooded_bytes += 1024
        elif line == "break":
            self.broken_count += 1
            stream.abort()
            return False
        elif line == "color":
            await self._print(terminal, b"\x1b[38;2;250;1;2mtrue red\x1b[0m\r\n")
        elif line == "exit":
            return False
        await self._print(terminal, b"$ ")
        return True

    async def _print(self, terminal: Terminal, output: bytes) -> None:
        terminal.scroll_back += output
        for stream in terminal.attached:
            await stream.send_all(output)


def keys(data: str = "", height: int = 0, width: int = 0) -> bytes:
    """A message of a browser."""
    return json.dumps({"data": data, "height": height, "width": width}).encode()


async def hold(stream: TunnelStream) -> None:
    """A terminal that reads nothing and says nothing."""
    await trio.sleep_forever()
