"""TLS handshakes over memory streams: roots, names, pins, meta certificates, and what failures say."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import ConnectError
from derp.transport import tls_client
from derp.transport.tls_client import TlsFacts, TlsStream, TlsTrust, certificate_matches, find_meta_key, start_tls
from tests.support.certificates import Issued, client_context, issue, issue_meta, server_context

KEY = bytes(range(32))
AUTHORITY = issue(common_name="test authority", is_authority=True)
LEAF = issue("relay.example", issuer=AUTHORITY)
SELF_SIGNED = issue("relay.example")
META = issue_meta(KEY)
TRUSTED = TlsTrust("relay.example", context=client_context(AUTHORITY))


@asynccontextmanager
async def shaken(trust: TlsTrust, context: ssl.SSLContext) -> AsyncIterator[tuple[TlsStream, TlsFacts]]:
    """Both sides of a handshake; the server says hello and reads until the end."""
    near, far = trio.testing.memory_stream_pair()

    async def serve() -> None:
        server = trio.SSLStream(far, context, server_side=True, https_compatible=True)
        try:
            await server.do_handshake()
            await server.send_all(b"hello")
            while await server.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # the client did not like us
        await trio.aclose_forcefully(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            with trio.fail_after(5):
                tls, facts = await start_tls(near, trust, "relay.example:443")
        except BaseException:
            nursery.cancel_scope.cancel()
            raise
        yield tls, facts
        await trio.aclose_forcefully(tls)


async def refusal(trust: TlsTrust, context: ssl.SSLContext) -> str:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            server = trio.SSLStream(far, context, server_side=True, https_compatible=True)
            try:
                await server.do_handshake()
                await server.receive_some()
            except trio.BrokenResourceError:
                pass
            await trio.aclose_forcefully(server)

        with pytest.raises(ConnectError, match=r"^TLS with relay.example:443: |^CertName") as caught:
            await start_tls(near, trust, "relay.example:443")
        with pytest.raises(trio.ClosedResourceError):  # nothing is left open
            await near.send_all(b"x")
        nursery.cancel_scope.cancel()
    return str(caught.value)


async def test_a_trusted_relay_with_meta_certificate() -> None:
    async with shaken(TRUSTED, server_context(LEAF, META)) as (tls, facts):
        assert facts == TlsFacts("TLSv1.3", None, KEY)
        assert await tls.receive_some() == b"hello"


async def test_the_chain_tells_its_end_and_the_pin_of_its_leaf() -> None:
    brief = issue("relay.example", issuer=AUTHORITY, valid=(timedelta(days=-1), timedelta(days=2)))
    # The meta certificate ends first, and nobody minds.
    meta = issue(
        common_name=f"derpkey{KEY.hex()}", serial=2, ed25519_key=True, valid=(timedelta(days=-1), timedelta(days=1))
    )
    async with shaken(TRUSTED, server_context(brief, meta)) as (_, facts):
        assert facts.expires_at() == brief.certificate.not_valid_after_utc.timestamp()
    async with shaken(TlsTrust("relay.example", cert_name=facts.leaf_pin()), server_context(brief, meta)) as (_, again):
        assert again.server_key == KEY
    assert (TlsFacts("").expires_at(), TlsFacts("").leaf_pin()) == (None, "")


async def test_no_alpn_is_offered_by_default_but_a_chosen_one_is_told() -> None:
    server = server_context(LEAF)
    server.set_alpn_protocols(["h2", "http/1.1"])
    async with shaken(TRUSTED, server) as (_, facts):
        assert facts == TlsFacts("TLSv1.3", None, None)
    offering = client_context(AUTHORITY)
    offering.set_alpn_protocols(["h2"])
    async with shaken(TlsTrust("relay.example", context=offering), server) as (_, facts):
        assert facts.alpn == "h2"


async def test_below_tls_13_a_meta_certificate_is_not_believed() -> None:
    async with shaken(TRUSTED, server_context(LEAF, META, tls12=True)) as (_, facts):
        assert facts == TlsFacts("TLSv1.2", None, None)


async def test_a_pin_admits_a_self_signed_relay() -> None:
    digits = SELF_SIGNED.pin.removeprefix("sha256-raw:").upper()
    trust = TlsTrust("relay.example", cert_name=f"sha256-raw:{digits}")
    async with shaken(trust, server_context(SELF_SIGNED, META)) as (_, facts):
        assert facts.server_key == KEY


async def test_a_pinned_relay_dialled_by_address_needs_no_name() -> None:
    async with shaken(TlsTrust("127.0.0.1", cert_name=SELF_SIGNED.pin), server_context(SELF_SIGNED)) as (_, facts):
        assert facts.version == "TLSv1.3"


async def test_cert_name_is_checked_instead_of_the_host_name() -> None:
    fronted = TlsTrust("front.example", cert_name="relay.example", context=unnamed_context())
    async with shaken(fronted, server_context(LEAF)) as (tls, _):
        assert tls.server_hostname == "front.example"  # what SNI said
    said = await refusal(TlsTrust("relay.example", "other.example", context=unnamed_context()), server_context(LEAF))
    assert "not for 'other.example'" in said


def unnamed_context() -> ssl.SSLContext:
    context = client_context(AUTHORITY)
    context.check_hostname = False
    return context


async def test_system_roots_with_cert_name_still_check_the_chain() -> None:
    assert "self-signed" in await refusal(TlsTrust("front.example", "relay.example"), server_context(SELF_SIGNED))


async def test_insecure_for_tests_checks_nothing_but_a_pin() -> None:
    async with shaken(TlsTrust("whatever", insecure_for_tests=True), server_context(SELF_SIGNED, META)) as (_, facts):
        assert facts.server_key == KEY
    trust = TlsTrust("relay.example", cert_name=LEAF.pin, insecure_for_tests=True)
    assert "not the pinned one" in await refusal(trust, server_context(SELF_SIGNED))


EXPIRED = issue("relay.example", valid=(timedelta(days=-9), timedelta(days=-1)))
COPYCAT = issue(common_name="derpkey" + "0" * 64, serial=1)


@pytest.mark.parametrize(
    ("trust", "chain", "said"),
    [
        (TlsTrust("relay.example"), (SELF_SIGNED,), "pin it in the DERP map"),
        (TlsTrust("relay.example"), (LEAF,), "issuer is not trusted"),
        (TlsTrust("other.example", context=client_context(AUTHORITY)), (LEAF,), "for another name"),
        (TlsTrust("10.0.0.1", context=client_context(AUTHORITY)), (LEAF,), "not for that address"),
        (TlsTrust("relay.example", LEAF.pin), (SELF_SIGNED, META), SELF_SIGNED.pin),
        (TlsTrust("relay.example", SELF_SIGNED.pin), (COPYCAT, SELF_SIGNED), "not the pinned one"),
        (TlsTrust("relay.example", LEAF.pin), (LEAF, AUTHORITY), "without a chain"),
        (TlsTrust("other.example", SELF_SIGNED.pin), (SELF_SIGNED,), "not for 'other.example'"),
        (TlsTrust("relay.example", EXPIRED.pin), (EXPIRED,), "renew it"),
        (TlsTrust("relay.example", "sha256-raw:beef"), (SELF_SIGNED,), "64 hex digits"),
        (TlsTrust("relay.example", "sha256-raw:" + "x" * 64), (SELF_SIGNED,), "64 hex digits"),
    ],
)
async def test_refusals_say_what_to_change(trust: TlsTrust, chain: tuple[Issued, ...], said: str) -> None:
    assert said in await refusal(trust, server_context(*chain))


async def test_an_old_server_is_refused() -> None:
    old = server_context(LEAF)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    await refusal(TlsTrust("relay.example", insecure_for_tests=True), old)


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ([LEAF.der, META.der], KEY),
        ([META.der], KEY),
        ([LEAF.der], None),
        ([], None),
        ([b"junk", b"", b"\x30\x82", LEAF.der[:200], META.der], KEY),
        ([issue_meta(KEY, serial=255).der], KEY),
        ([issue_meta(KEY, serial=256).der], None),
        ([issue_meta(KEY, serial=256).der, META.der], KEY),
        ([issue_meta(KEY[:31]).der], None),
        ([issue(common_name="derpkey" + "zz" * 32, serial=2).der], None),
        ([issue(common_name=f"xderpkey{KEY.hex()}"[:64], serial=2).der], None),
        ([LEAF.der] * 16 + [META.der], None),  # nobody sends that many
    ],
)
def test_meta_keys(chain: list[bytes], found: bytes | None) -> None:
    assert find_meta_key(chain) == found


@given(st.integers(0, len(META.der)), st.binary(max_size=8), st.integers(0, 8))
def test_perturbed_certificates_give_a_key_or_none(at: int, junk: bytes, removed: int) -> None:
    found = find_meta_key([META.der[:at] + junk + META.der[at + removed :]])
    assert found is None or len(found) == 32


@pytest.mark.parametrize(
    ("names", "wanted", "matches"),
    [
        (("a.example",), "A.example.", True),
        (("*.example.com",), "a.example.com", True),
        (("*.example.com",), "a.b.example.com", False),
        (("*.example.com",), "example.com", False),
        (("*.example",), "localhost", False),
        (("10.0.0.1",), "10.0.0.1", True),
        (("10.0.0.1",), "10.0.0.2", False),
        (("a.example",), "10.0.0.1", False),
        ((), "test", False),  # a common name alone names nobody
    ],
)
def test_names_of_certificates(names: tuple[str, ...], wanted: str, matches: bool) -> None:
    assert certificate_matches(issue(*names).certificate, wanted) is matches


# Names as maps have them.


@pytest.mark.parametrize(
    ("trust", "asked"),
    [
        (TlsTrust("relay.example."), "relay.example"),
        (TlsTrust("Relay.Example."), "relay.example"),
        (TlsTrust("relay.example.", cert_name=LEAF.pin), "relay.example"),
        (TlsTrust("other.example.", cert_name="relay.example."), "other.example"),
        (TlsTrust("relay.example.", insecure_for_tests=True), "relay.example"),
        # Genuine clients dial a node without HostName by its address and take any certificate that they trust.
        (TlsTrust(""), None),
        (TlsTrust("", cert_name="relay.example"), "relay.example"),
        (TlsTrust("", cert_name="relay.example."), "relay.example"),
        (TlsTrust("", cert_name=LEAF.pin), None),
    ],
)
async def test_a_final_dot_and_a_missing_name(
    trust: TlsTrust, asked: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "roots.pem").write_bytes(AUTHORITY.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    tls_client._context.cache_clear()
    names: list[str | None] = []
    context = server_context(LEAF)
    context.sni_callback = lambda tls, name, context: names.append(name)
    async with shaken(trust, context) as (_, facts):
        assert facts.version == "TLSv1.3"
    assert [name and name.lower() for name in names] == [asked]
    tls_client._context.cache_clear()


@pytest.mark.parametrize("name", ["ü" * 70 + ".example", "ü..b", "\udc80"])
async def test_a_name_that_tls_cannot_ask_for_is_a_connect_error(name: str) -> None:
    near, _ = trio.testing.memory_stream_pair()
    with trio.fail_after(5), pytest.raises(ConnectError, match="correct HostName or CertName"):
        await start_tls(near, TlsTrust(name, context=client_context(AUTHORITY)), "relay.example:443")
