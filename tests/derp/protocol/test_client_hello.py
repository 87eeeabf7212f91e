"""What real clients offer, whole and byte by byte, and that nothing else offers anything."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.protocol.client_hello import offered_protocols


def client_hello(protocols: list[str], name: str | None = "relay.example") -> bytes:
    """The first bytes that OpenSSL sends as a client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same handshake message, cut into records of `size` bytes."""
    message = hello[5:]
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(hello[:3] + len(part).to_bytes(2, "big") + part for part in parts)


@pytest.mark.parametrize("protocols", [[], ["http/1.1"], ["acme-tls/1"], ["h2", "http/1.1", "x" * 255]])
@pytest.mark.parametrize("name", ["relay.example", None])
def test_openssl(protocols: list[str], name: str | None) -> None:
    hello = client_hello(protocols, name)
    wanted = tuple(protocol.encode() for protocol in protocols)
    assert offered_protocols(hello) == wanted
    assert offered_protocols(hello + b"more") == wanted
    assert [offered_protocols(hello[:end]) for end in range(len(hello))] == [None] * len(hello)
    for size in (20, 100):
        cut = in_records(hello, size)
        assert offered_protocols(cut) == wanted
        assert offered_protocols(cut[:-1]) is None


def test_more_records_than_anybody_sends_offer_nothing() -> None:
    hello = client_hello(["acme-tls/1"])
    assert offered_protocols(in_records(hello, 1)) == ()
    assert offered_protocols(in_records(hello, 1)[: 63 * 6]) is None
    whole = in_records(hello, -(-(len(hello) - 5) // 64))
    assert offered_protocols(whole) == (b"acme-tls/1",)


@pytest.mark.parametrize(
    "received",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\xff\xff",  # a record larger than any
        b"\x15\x03\x01\x00\x02\x02\x28",  # an alert
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x01\x00\x01",  # longer than we would keep
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # empty
    ],
)
def test_whatever_is_none_offers_nothing(received: bytes) -> None:
    assert offered_protocols(received) == ()


@given(st.data())
def test_a_damaged_one_is_an_answer_too(draw: st.DataObject) -> None:
    hello = bytearray(client_hello(["acme-tls/1"]))
    at = draw.draw(st.integers(0, len(hello) - 1))
    hello[at] = draw.draw(st.integers(0, 255))
    found = offered_protocols(bytes(hello))
    assert found is None or all(isinstance(name, bytes) for name in found)
