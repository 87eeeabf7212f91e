"""The value itself: what follows from the settings, and that its text form holds no secret."""

import math
from dataclasses import replace

import pytest

from derp.config.relay import RelayConfig
from derp.keys import MeshKey, NodePrivate

PRIVATE = NodePrivate.generate()
CONFIG = RelayConfig(PRIVATE, mesh_key=MeshKey(b"\x5a" * 32))


def test_secrets_stay_out_of_the_text_form() -> None:
    text = repr(CONFIG)
    assert PRIVATE.raw.hex() not in text
    assert "5a5a" not in text
    assert text.count("<secret>") == 2


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({}, True),
        ({"deny_keys": frozenset({b"x" * 32})}, True),
        ({"allow_keys": frozenset()}, False),
        ({"verify_client_url": "https://a.example/"}, False),
        ({"verify_clients": True}, False),
    ],
)
def test_open_means_a_stranger_may_come_in(changes: dict[str, object], is_open: bool) -> None:
    assert replace(CONFIG, **changes).admission_is_open is is_open  # type: ignore[arg-type]  # one table, many fields


def test_stun_binds_once_to_each_address_of_the_listeners() -> None:
    listen = (("127.0.0.1", 1), ("", 2), ("127.0.0.1", 3))
    assert replace(CONFIG, listen=listen).stun_hosts == ("127.0.0.1", "")
    assert replace(CONFIG, listen=listen, stun_enabled=False).stun_hosts == ()


def test_accepts_are_limited_unless_told_otherwise() -> None:
    assert CONFIG.has_accept_limit
    assert not replace(CONFIG, accept_connection_limit=math.inf).has_accept_limit
