"""The agent's side of a speed test, as an agent's port 3 behaves."""

import json
import os

import trio


async def serve_speedtest(stream: trio.abc.HalfCloseableStream) -> None:
    """One test: the wish, `{}`, then blocks one way until the time is over."""
    async with stream:
        line = b""
        while not line.endswith(b"\n"):
            line += await stream.receive_some(1)
        wish = json.loads(line)
        if wish["version"] != 2:
            await stream.send_all(b'{"error": "version mismatch"}\n')
            return
        await stream.send_all(b"{}\n")
        if wish["direction"] == 1:
            async for _ in stream:
                pass
            return
        block, ends_at = os.urandom(64 * 1024), trio.current_time() + wish["time"] / 1e9
        while trio.current_time() < ends_at:
            await stream.send_all(block)
