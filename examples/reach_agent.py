"""A port of an agent from a script or a notebook: no root, no TUN device.

python examples/reach_agent.py URL TOKEN AGENT PORT     (`tailnet agents` says what to call AGENT)
"""

import sys

import trio

import tailnet


async def main(url: str, token: str, agent: str, port: str) -> None:
    """Ask the web server on an agent's port for its page, and print what it answers first."""
    async with tailnet.connect(url, token, agent) as tunnel, await tunnel.dial(int(port)) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        print((await stream.receive_some()).decode())


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:5])
