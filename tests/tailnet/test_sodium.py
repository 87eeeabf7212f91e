"""The two ciphers against bytes of genuine programs, and that what is damaged is None."""

import json
from pathlib import Path

from tailnet.sodium import agree, open_box, open_xchacha, public_of, seal_box, seal_xchacha
from tests.vectors.wireguard import VECTORS

DISCO = json.loads((Path(__file__).parent.parent / "vectors" / "disco.json").read_text())
KEYS = {name: bytes.fromhex(text) for name, text in DISCO["keys"].items() if not text.startswith(("disco", "node"))}


def test_a_box_of_a_genuine_node() -> None:
    shared = agree(KEYS["disco_a_private"], KEYS["disco_b_public"])
    assert shared == agree(KEYS["disco_b_private"], KEYS["disco_a_public"]) == KEYS["shared_key_precomputed"]
    assert public_of(KEYS["disco_a_private"]) == KEYS["disco_a_public"]
    for message in DISCO["messages_v1_80_3"]:
        wire, nonce, text = (bytes.fromhex(message[name]) for name in ("packet_a_to_b", "nonce", "payload"))
        assert open_box(shared, nonce, wire[62:]) == text
        assert seal_box(shared, nonce, text) == wire[62:]
        assert open_box(shared, nonce, wire[62:-1]) is None
        assert open_box(shared, nonce, b"") is None


def test_a_key_for_which_everybody_knows_the_secret() -> None:
    assert agree(KEYS["disco_a_private"], bytes(32)) is None


def test_a_genuine_cookie() -> None:
    cookie = VECTORS["cookie"]
    reply, key = bytes.fromhex(cookie["cookie_reply"]), bytes.fromhex(cookie["cookie_key"])
    mac1 = bytes.fromhex(cookie["message_with_mac1"])[-32:-16]
    assert open_xchacha(key, reply[8:32], reply[32:], mac1) == bytes.fromhex(cookie["cookie"])
    assert seal_xchacha(key, reply[8:32], bytes.fromhex(cookie["cookie"]), mac1) == reply[32:]
    assert open_xchacha(key, reply[8:32], reply[32:], bytes(16)) is None
    assert open_xchacha(key, reply[8:32], b"short", mac1) is None
