"""What a shell on a terminal begins with: what the deployment announces, and the workspace's message of the day.
Layer L3.  Called by ssh.py."""

import os
import stat
from typing import Final

import trio

from derp.text import printable
from tailnet.agent.context import Context, home_directory

# A message of the day is a page; a file that is not read so soon is a network's that does not answer.
MAX_MOTD_BYTES: Final = 64 * 1024
READ_SECONDS: Final = 2.0
MAX_BANNER_CHARS: Final = 3_000
_QUIET: Final = ".hushlogin"


async def read_greeting(context: Context) -> bytes:
    """For a terminal.  Empty where there is nothing to say, or where the user wants to hear nothing (~/.hushlogin)."""
    if not context.banners and not context.motd_path:
        return b""
    said = b""
    with trio.move_on_after(READ_SECONDS):
        said = await trio.to_thread.run_sync(_read, context.banners, context.motd_path, abandon_on_cancel=True)
    return said.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _read(banners: tuple[str, ...], motd_path: str) -> bytes:
    if os.path.exists(os.path.join(home_directory(), _QUIET)):
        return b""
    lines = [printable(line, MAX_BANNER_CHARS) for banner in banners for line in banner.splitlines()]
    said = "".join(f"{line}\n" for line in lines).encode()
    try:
        motd = _read_file(motd_path)
    except (OSError, ValueError):  # most workspaces have none
        motd = b""
    return said + motd + b"\n" * bool(motd and not motd.endswith(b"\n"))


def _read_file(path: str) -> bytes:
    """Raises OSError, ValueError."""
    # A pipe would have us wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, MAX_MOTD_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
