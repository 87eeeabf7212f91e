"""The agent's side of a speed test, for whoever needs it without an agent around it."""

from typing import Any

from tailnet.agent.speedtest import SpeedtestServer

_server = SpeedtestServer()


async def serve_speedtest(stream: Any) -> None:
    """One test."""
    async with stream:
        await _server.serve(stream, None)  # it is nobody's agent
