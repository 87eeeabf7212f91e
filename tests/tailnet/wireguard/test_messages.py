"""Padding, indices and lengths of messages."""

import pytest

from tailnet.wireguard.messages import LENGTHS, fresh_index, padding_bytes
from tests.vectors.wireguard import HANDSHAKES, VECTORS


@pytest.mark.parametrize(("size", "mtu", "added"), VECTORS["padding_len_mtu_added"])
def test_padding_is_the_genuine_one(size: int, mtu: int, added: int) -> None:
    assert padding_bytes(size, mtu) == added


def test_lengths_are_those_of_genuine_messages() -> None:
    for packet in HANDSHAKES[0]["packets"][:2]:
        assert LENGTHS[bytes.fromhex(packet["bytes"])[0]] == packet["len"]
    assert LENGTHS[3] == len(bytes.fromhex(VECTORS["cookie"]["cookie_reply"]))


def test_an_index_is_new_and_never_looks_like_stun() -> None:
    offered = iter([bytes.fromhex("2112a442"), b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"])
    assert fresh_index(lambda count: next(offered), {1}, {2: "taken"}) == 3
