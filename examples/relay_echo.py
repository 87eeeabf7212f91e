"""A client that stays connected whatever the relay does, and sends back what it gets.

python examples/relay_echo.py https://relay.example.org     (ends with Ctrl-C)
Without an address it starts a relay of its own, sends itself one packet through it, and ends.
"""

import sys

import trio

from derp import NodePrivate, ReconnectingClient, RelayConfig, connect, connect_forever, serve
from derp.protocol.messages import RecvPacket


async def echo(client: ReconnectingClient) -> None:
    """Send every packet back.  What else comes (a connection that was lost and is there again) is printed."""
    while True:
        heard = await client.receive()
        if isinstance(heard, RecvPacket):
            client.send_nowait(heard.src, heard.packet)
        else:
            print(heard, file=sys.stderr)


async def main(url: str | None) -> None:
    """Echo at `url`, or show it once on a relay of our own."""
    private = NodePrivate.generate()
    async with trio.open_nursery() as nursery:
        if url is None:
            config = RelayConfig(private_key=NodePrivate.generate(), listen=(("127.0.0.1", 0),), stun_enabled=False)
            relay = await nursery.start(serve, config)
            url = f"http://127.0.0.1:{relay.listening[0].port}"
            nursery.start_soon(show_once, url, private.public().raw, nursery.cancel_scope)
        print("echoing as", private.public(), "at", url)
        async with connect_forever(url, private) as client:
            await echo(client)


async def show_once(url: str, key: bytes, done: trio.CancelScope) -> None:
    """Send a packet to the echo until it comes back."""
    async with connect(url, NodePrivate.generate()) as client:
        while True:
            await client.send(key, b"is anybody there?")
            # The echo may not be connected yet: the relay says so, and we ask again.
            heard = await client.receive()
            if isinstance(heard, RecvPacket):
                print("came back:", heard.packet)
                break
            await trio.sleep(0.1)
    done.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else None)
