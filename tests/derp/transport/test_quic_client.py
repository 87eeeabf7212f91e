"""A client's QUIC stream: whom it trusts, how it ends, and what it does when nobody answers."""

import socket
from pathlib import Path

import pytest
import trio

from derp.client.client import open_derp_client
from derp.client.dial import DialOptions
from derp.config import TlsConfig
from derp.errors import ConnectError
from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from derp.transport import quic_client
from derp.transport.quic import STREAM_BYTES
from derp.transport.quic_client import QuicStream, open_quic
from derp.transport.tls_client import TlsTrust
from tests.derp.server.world import HOST, PATIENCE_SECONDS, config_for, open_server, port_of, relay_config
from tests.support.certificates import client_context, issue
from tests.support.quic import open_nat

REQUEST = b"GET /nowhere HTTP/1.1\r\nHost: relay\r\n\r\n"


async def open_stream(port: int, trust: TlsTrust) -> QuicStream:
    with trio.fail_after(PATIENCE_SECONDS):
        return await open_quic((HOST, port), socket.AF_INET, trust, "the relay")


async def test_whom_it_trusts(tmp_path: Path) -> None:
    authority = issue("authority.test", is_authority=True)
    leaf = issue("relay.test", HOST, issuer=authority)
    (tmp_path / "crt").write_bytes(leaf.pem)
    (tmp_path / "key").write_bytes(leaf.key_pem)
    tls = TlsConfig(cert_file=tmp_path / "crt", key_file=tmp_path / "key")
    context, nobody = client_context(authority), client_context(issue("other.test", is_authority=True))
    any_name = client_context(authority)
    any_name.check_hostname = False
    async with open_server(relay_config(tls=tls, quic=True)) as server:
        port, key = port_of(server), server.relay.public_key.raw
        for trust in (
            TlsTrust("relay.test", context=context),
            TlsTrust(HOST, context=context),
            TlsTrust("elsewhere.test", cert_name="relay.test", context=any_name),
            TlsTrust("relay.test", cert_name=leaf.pin),
            TlsTrust("elsewhere.test", insecure_for_tests=True),
        ):
            stream = await open_stream(port, trust)
            assert (stream.facts.version, stream.facts.server_key) == ("TLSv1.3", key)
            await trio.aclose_forcefully(stream)
        for trust, why in (
            (TlsTrust("elsewhere.test", context=context), "not for 'elsewhere.test'"),
            (TlsTrust("relay.test", context=nobody), "is refused"),
            (TlsTrust("relay.test"), "is refused"),
            (TlsTrust("relay.test", cert_name=authority.pin), "not the pinned one"),
        ):
            with pytest.raises(ConnectError, match=why):
                await open_stream(port, trust)


async def test_a_closed_port_is_told_at_once() -> None:
    with pytest.raises(ConnectError, match="QUIC with the relay"):
        await open_stream(9, TlsTrust("relay.test"))


async def test_one_task_drives_for_all_and_another_takes_over() -> None:
    async with open_server(config_for("quic")) as server:
        stream = await open_stream(port_of(server), TlsTrust(HOST, insecure_for_tests=True))
        await stream.send_all(REQUEST)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await stream.receive_some())

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await stream.receive_some()
                nursery.start_soon(stream.run)
                nursery.start_soon(read)
                while not got:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert got[0].startswith(b"HTTP/1.1 404")
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_whoever_receives_nothing_holds_the_relay_back_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_client, "_MAX_WAITING_BYTES", 100_000)
    options = DialOptions(insecure_for_tests=True, only_quic=True, environment=None)
    private, large = NodePrivate.generate(), bytes(30_000)  # so large that it goes in the stream
    async with open_server(config_for("quic")) as server:
        url = f"https://{HOST}:{port_of(server)}"
        async with (
            open_derp_client(url, private, options=options, timeout_seconds=PATIENCE_SECONDS) as idle,
            open_derp_client(url, NodePrivate.generate(), options=options, timeout_seconds=PATIENCE_SECONDS) as busy,
        ):
            stream = idle._stream
            assert isinstance(stream, QuicStream)

            def is_full() -> bool:
                return bool(stream._waiting) and stream.line.has_stream

            with trio.fail_after(PATIENCE_SECONDS):
                while not is_full():
                    await busy.send(private.public().raw, large)
                    await busy.ping()
                assert 100_000 <= len(stream._waiting) < 100_000 + STREAM_BYTES
                for _ in range(len(stream._waiting) // len(large) + 1):  # and one that there was no room for
                    message = await idle.receive()
                    assert isinstance(message, RecvPacket)
                    assert message.packet == large
                await busy.send(private.public().raw, b"and on")
                while not (isinstance(message := await idle.receive(), RecvPacket) and message.packet == b"and on"):
                    pass


async def test_closing_wakes_who_waits() -> None:
    async with open_server(config_for("quic")) as server:
        stream = await open_stream(port_of(server), TlsTrust(HOST, insecure_for_tests=True))

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(read)
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                await stream.aclose()


async def test_when_nobody_answers_it_goes_on_from_another_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_client, "PING_SECONDS", 0.2)
    monkeypatch.setattr(quic_client, "_SILENT_SECONDS", 0.2)
    async with open_server(config_for("quic")) as server, open_nat((HOST, port_of(server))) as nat:
        stream = await open_stream(nat.port, TlsTrust(HOST, insecure_for_tests=True))
        before = stream._socket.getsockname()
        nat.cut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run)
            with trio.fail_after(PATIENCE_SECONDS):
                while stream._socket.fileno() < 0 or stream._socket.getsockname() == before:
                    await trio.lowlevel.checkpoint()
            nat.forget()
            await stream.send_all(REQUEST)
            with trio.fail_after(PATIENCE_SECONDS):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 404")
            assert len(nat.ports) == 2
            nursery.cancel_scope.cancel()
        await stream.aclose()
