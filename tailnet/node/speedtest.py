"""How many bytes a second go through a tunnel, by the test that agents serve on port 3.  Layer L3.

A line of JSON says for how long and who sends; a line answers, with an error or without.  Then the sender writes
random blocks until the time is over, and closes; the receiver counts.  An agent serves one test at a time.
Next hop: streams.py.
"""

import json
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import trio

from derp.text import error_text, fit_to_show
from tailnet.errors import TransportError
from tailnet.node.streams import TunnelStream

SPEEDTEST_PORT: Final = 3
VERSION: Final = 2
# The receiver's direction, as the one who asks says it: the agent sends, or we do.
DOWNLOAD: Final = 0
UPLOAD: Final = 1
BLOCK_BYTES: Final = 2 * 1024 * 1024
INTERVAL_SECONDS: Final = 1.0
# How long after its time a test may last: what is on the way still.
GRACE_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 15.0
_MAX_LINE: Final = 4_096
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes that went through from one moment to another; in seconds since the test began."""

    begin_seconds: float
    end_seconds: float
    byte_count: int

    @property
    def mbits_per_second(self) -> float:
        """In 10^6 bits."""
        seconds = self.end_seconds - self.begin_seconds
        return self.byte_count * 8 / 1e6 / seconds if seconds > 0 else 0.0


async def measure(stream: TunnelStream, seconds: float, *, is_upload: bool) -> AsyncGenerator[Measured, None]:
    """Run the test on a connection to port 3: a Measured for each second or so, and at last one for all of it.

    Raises TransportError when the agent refuses, is silent or breaks off.  Iterate it in `aclosing`.
    """
    late = TransportError(f"the agent did not end the test within {seconds + GRACE_SECONDS:g} s")
    try:
        yielded = trio.current_time()
        rest = await _agree(stream, seconds, is_upload)
        began = last = trio.current_time()
        deadline = began + seconds + GRACE_SECONDS
        total, since, block = len(rest), len(rest), os.urandom(BLOCK_BYTES)
        while True:
            with trio.move_on_at(deadline) as scope:
                if not is_upload:
                    count = len(await stream.receive_some())
                else:
                    count = len(block) if trio.current_time() - began <= seconds else 0
                    if count:
                        await stream.send_all(block)
                    else:
                        await stream.send_eof()
                        await stream.receive_some()  # its end: all of it has arrived
            if scope.cancelled_caught:
                raise late
            total, since = total + count, since + count
            yielded = trio.current_time()
            if not count:
                break
            if yielded - last >= INTERVAL_SECONDS:
                yield Measured(last - began, yielded - began, since)
                last, since = trio.current_time(), 0
        yield Measured(0.0, yielded - began, total)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise TransportError(f"the test broke off: {error_text(error)}") from None


async def _agree(stream: TunnelStream, seconds: float, is_upload: bool) -> bytes:
    """Ask for a test; what came behind the answer already belongs to it."""
    direction = UPLOAD if is_upload else DOWNLOAD
    wish = {"version": VERSION, "time": int(seconds * _NANOSECONDS), "direction": direction}
    answer = b""
    with trio.move_on_after(_ANSWER_SECONDS) as scope:
        await stream.send_all(json.dumps(wish).encode() + b"\n")
        while b"\n" not in answer and len(answer) < _MAX_LINE and (part := await stream.receive_some(_MAX_LINE)):
            answer += part
    if scope.cancelled_caught:
        raise TransportError("the agent does not answer: perhaps another test is running")
    line, newline, rest = answer.partition(b"\n")
    try:
        said = json.loads(line) if newline else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise TransportError("the agent's answer is none of a speed test")
    if said.get("error"):
        raise TransportError(f"the agent refuses: {fit_to_show(str(said['error']))}")
    return rest
