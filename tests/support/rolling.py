"""Genuine clients that talk in pairs while relays are replaced (tests/interop/go/cmd/derprolling).

No pytest here: bench/replacement.py measures with the same program what tests/interop/test_derp_rolling.py asserts.
"""

import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio


async def roll(
    binary: Path,
    ports: Sequence[int],
    replace: Callable[[int], Awaitable[None]],
    *,
    clients: int,
    period: str,
    address: str = "127.0.0.1",
    trusted: Path | None = None,
    home: tuple[Sequence[int], tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """What they saw while `replace` was called for one relay after the other, from the moment all reach each other.

    `period`: between two packets of a client, as Go writes durations.  `address`: where all relays are.  `trusted`: the
    authority, for clients that speak websocket; `home`: the STUN ports, and port and STUN port of another region's
    relay, to count moves of home between the two.  Raises EOFError if the program ends early; its standard error says
    why.
    """
    command = [str(binary), f"-clients={clients}", f"-period={period}", f"-address={address}", "-ports=" + _list(ports)]
    environment = dict(os.environ)
    if trusted is not None:
        command.append("-websocket")
        environment |= {"TS_DEBUG_DERP_WS_CLIENT": "1", "SSL_CERT_FILE": str(trusted)}
    if home is not None:
        command += ["-stun=" + _list(home[0]), "-elsewhere=" + _list(home[1])]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = b""
        while not said.endswith(b"\n"):
            piece = await process.stdout.receive_some()
            if not piece:
                raise EOFError("derprolling ended before its clients reached each other")
            said += piece
        for number in range(len(ports)):
            await replace(number)
        await process.stdin.aclose()
        found: dict[str, Any] = json.loads(b"".join([piece async for piece in process.stdout]))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    return found


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))
