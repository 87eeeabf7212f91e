"""A relay inside a program of one's own, and two clients that exchange packets through it.

python examples/relay_in_process.py
"""

import trio

from derp import NodePrivate, RelayConfig, connect, serve


async def main() -> None:
    """Serve on a free port of loopback, connect twice, send one packet each way."""
    config = RelayConfig(private_key=NodePrivate.generate(), listen=(("127.0.0.1", 0),), stun_enabled=False)
    async with trio.open_nursery() as nursery:
        relay = await nursery.start(serve, config)
        url = f"http://127.0.0.1:{relay.listening[0].port}"
        alice, bob = NodePrivate.generate(), NodePrivate.generate()
        async with connect(url, alice) as at_alice, connect(url, bob) as at_bob:
            await at_alice.send(bob.public().raw, b"hello bob")
            print("bob got", (await at_bob.receive()).packet)
            await at_bob.send(alice.public().raw, b"hello alice")
            print("alice got", (await at_alice.receive()).packet)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
