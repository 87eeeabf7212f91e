"""Go's crypto/tls at our relay, whose records are OpenSSL's or our own: what came of it has to be the same.

What it does and prints: tests/interop/go_wires/cmd/tlspeer.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import trio

from derp.keys import NodePrivate
from derp.protocol import tls13
from derp.protocol.tls13 import Keys
from tests.derp.server.world import HOST, SELF_SIGNED, open_server, port_of, relay_config
from tests.support.gobuild import TLSPEER
from tests.support.peers import require

pytestmark = pytest.mark.interop

PRIVATE = NodePrivate.generate()  # one for all servers, so that their pages are the same


@dataclass(frozen=True)
class Way:
    """What the program is told, and what the server is: a group is the only one that it takes."""

    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None
    group: str = ""


WAYS = {
    "as it comes": Way(),
    "without AES in its processor": Way(environment={"GODEBUG": "cpu.aes=off"}),
    "another group than its share": Way(("-curves", "X25519,P-384"), group="secp384r1"),
    "TLS 1.2": Way(("-version", "1.2")),
}


async def transcript(way: Way, *, own: bool) -> dict[str, str]:
    """What it did, and what came of each."""
    binary = require(TLSPEER)
    config = relay_config(private_key=PRIVATE, tls=replace(SELF_SIGNED, own_records=own))
    async with open_server(config) as server:
        assert server.tls is not None
        if way.group:
            server.tls.context.set_ecdh_curve(way.group)
        command = [str(binary), *way.flags, f"{HOST}:{port_of(server)}"]
        done = await trio.run_process(command, capture_stdout=True, env=os.environ | (way.environment or {}))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["did"]: line["came"] for line in lines}


@pytest.mark.parametrize("name", WAYS)
async def test_its_transcript_is_that_with_openssl(name: str) -> None:
    own = await transcript(WAYS[name], own=True)
    assert own == await transcript(WAYS[name], own=False)
    handshake = own["handshake"]
    assert handshake.startswith("TLS 1.2" if name == "TLS 1.2" else "TLS 1.3")
    assert ("CHACHA20" in handshake) is (name == "without AES in its processor")
    assert ("retry true" in handshake) is (name == "another group than its share")
    assert own["close_notify right behind a packet"] == own["a frame that is none"] == "close_notify"
    assert own["a forged record"] == "remote error: tls: bad record MAC"
    assert (own["tickets"] == "0") is (name != "TLS 1.2")
    assert len(own) > 20


async def test_new_keys_of_both_sides_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go takes new ones when it is asked to, and never by itself."""
    taken: list[Keys] = []
    take_next = Keys.next

    def noted(keys: Keys) -> Keys:
        taken.append(keys)
        return take_next(keys)

    monkeypatch.setattr(Keys, "next", noted)
    expected = await transcript(Way(), own=True)
    assert taken == []
    monkeypatch.setattr(tls13, "RECORDS_PER_KEY", 16)
    assert await transcript(Way(), own=True) == expected
    # Each round trip of 200 is a record each way.
    assert len(taken) > 2 * 200 / 20
