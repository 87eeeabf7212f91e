"""TSMP on the wire, against bytes of genuine nodes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack import tsmp
from tailnet.netstack.limits import Drop
from tailnet.netstack.tsmp import DiscoKey, Ping, Pong, Reject

KEY = bytes.fromhex("9e7a17c6b9f3ca539c4c848493bb4d4c60d4956cae4ba88eefdc2f7738695e41")
TOKEN = bytes.fromhex("deadbeef01020304")


@pytest.mark.parametrize(
    ("message", "parsed"),
    [
        ("70deadbeef01020304", Ping(TOKEN)),
        ("70deadbeef01020304ffff", Ping(TOKEN)),
        ("6fdeadbeef010203040000", Pong(TOKEN, 0)),
        ("6fdeadbeef010203040d3d", Pong(TOKEN, 3389)),
        ("6fdeadbeef01020304", Pong(TOKEN, 0)),
        ("2106419c400016", Reject(6, "its access rules refuse it", 40000, 22)),
        ("2106579c40001601", Reject(6, "its host's firewall refuses it", 40000, 22)),
        ("2106009c400016", Reject(6, "it does not say why", 40000, 22)),
        ("61" + KEY.hex(), DiscoKey(KEY)),
        ("61" + KEY.hex() + "00", DiscoKey(KEY)),
        ("", Drop.MALFORMED_TSMP),
        ("70deadbeef010203", Drop.MALFORMED_TSMP),
        ("6fdeadbeef010203", Drop.MALFORMED_TSMP),
        ("2106419c4000", Drop.MALFORMED_TSMP),
        ("61" + KEY.hex()[2:], Drop.MALFORMED_TSMP),
        ("7a00", Drop.MALFORMED_TSMP),
    ],
)
def test_messages(message: str, parsed: object) -> None:
    assert tsmp.parse(bytes.fromhex(message)) == parsed
    assert tsmp.parse(memoryview(bytes.fromhex(message))) == parsed


def test_ours() -> None:
    assert tsmp.build_ping(TOKEN).hex() == "70deadbeef01020304"
    assert tsmp.build_pong(TOKEN).hex() == "6fdeadbeef010203040000"


@given(st.binary(max_size=50))
def test_any_bytes(data: bytes) -> None:
    assert isinstance(tsmp.parse(data), Ping | Pong | Reject | DiscoKey | Drop)
