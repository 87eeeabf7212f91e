"""A port of an agent from a program on asyncio, or a notebook.

python examples/reach_agent_asyncio.py URL TOKEN AGENT PORT     (`tailnet agents` says what to call AGENT)
"""

import asyncio
import sys

import tailnet


async def main(url: str, token: str, agent: str, port: str) -> None:
    """Ask the web server on an agent's port for its page, and print what it answers first."""
    async with tailnet.connect_asyncio(url, token, agent) as client:
        reader, writer = await client.open_connection(int(port))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        print((await reader.read(65536)).decode())
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
