"""Exceptions without a word, planted where libraries and the system raise: every place still tells a reason."""

import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests
import trio

from derp.client import mapsource
from derp.close_reason import CloseReason
from derp.config import AcmeConfig, TlsConfig
from derp.config.sources import read_file
from derp.errors import ConfigError, DerpError
from derp.keys import NodePrivate
from derp.server import bootstrap, handover
from derp.text import error_text
from derp.transport import acme, dns, hook, listen
from derp.transport.host import WireEnded
from derp.transport.links import Link
from derp.transport.tls import TlsServer, make_self_signed
from tests.support.wires import socket_pair

SILENT = (
    "OSError, for which no reason is given",
    "SSLError, for which no reason is given",
    "ConnectionError, for which no reason is given",
)


def fail_with(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*args: object, **more: object) -> NoReturn:
        raise error

    return fail


def asynchronously(error: BaseException) -> Callable[..., Awaitable[NoReturn]]:
    async def fail(*args: object, **more: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise error

    return fail


def tells(caught: BaseException | str) -> None:
    text = str(caught)
    assert any(reason in text for reason in SILENT), text
    assert not text.rstrip().endswith((":", "None", "()"))


def test_files_of_settings_and_maps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(Path, "open", fail_with(OSError()))
        planted.setattr(mapsource, "open", fail_with(OSError()), raising=False)
        with pytest.raises(ConfigError) as of_settings:
            read_file(tmp_path / "relay.toml", "settings")
        with pytest.raises(ConfigError) as of_a_map:
            trio.run(mapsource.load_map, str(tmp_path / "map.json"))
    tells(of_settings.value)
    tells(of_a_map.value)


async def test_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "_ask", asynchronously(OSError()))
    with pytest.raises(DerpError) as caught:
        await dns.look_up_txt("relay.example", [("127.0.0.1", 53)])
    tells(caught.value)


async def test_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "run_process", asynchronously(OSError()))
    with pytest.raises(hook.HookError) as caught:
        await hook.run_hook(["/bin/true"])
    tells(caught.value)


def test_a_listening_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    for opening in (listen.open_listener, listen.open_udp):
        with monkeypatch.context() as planted:
            planted.setattr(socket.socket, "bind", fail_with(OSError()))
            planted.setattr(socket, "create_server", fail_with(OSError()))
            with pytest.raises(DerpError) as caught:
                opening("127.0.0.1", 0)
        tells(caught.value)


async def test_a_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.lowlevel, "open_process", asynchronously(OSError()))
    with pytest.raises(handover.HandoverError) as caught:
        await handover.hand_over([], ["derp"])
    tells(caught.value)


async def test_bootstrap_dns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", asynchronously(OSError()))
    names = bootstrap.BootstrapDns(("relay.example",), ())
    await names._refresh("relay.example")
    tells(caplog.text)


def test_a_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    certificate, key = make_self_signed("relay.example", datetime.now(UTC))
    files = tmp_path / "relay.crt", tmp_path / "relay.key"
    files[0].write_bytes(certificate)
    files[1].write_bytes(key)
    config = TlsConfig(*files, "relay.example")
    public = NodePrivate.generate().public()
    with monkeypatch.context() as planted:
        planted.setattr(ssl.SSLContext, "load_cert_chain", fail_with(ssl.SSLError()))
        with pytest.raises(ConfigError) as caught:
            TlsServer(config, public, now=0.0)
        tells(caught.value)
    with monkeypatch.context() as planted:
        planted.setattr(Path, "read_bytes", fail_with(OSError()))
        with pytest.raises(ConfigError) as caught:
            TlsServer(config, public, now=0.0)
        tells(caught.value)


def test_an_authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requests.Session, "request", fail_with(requests.exceptions.ConnectionError()))
    order = acme.AcmeOrder(AcmeConfig(), "relay.example", tmp_path / "account.key", acme.HTTP)
    with pytest.raises(acme.AcmeError) as caught:
        order.begin(b"")
    tells(caught.value)


@pytest.mark.parametrize("error", [OSError(), OSError(errno.EIO, os.strerror(errno.EIO))], ids=["silent", "EIO"])
def test_a_connection(error: OSError) -> None:
    near, far = socket_pair()

    class Broken:
        def recv_into(self, *args: Any) -> int:
            raise error

        def fileno(self) -> int:
            return near.fileno()

    link = Link(near, ("192.0.2.1", 1))
    link.sock = Broken()  # type: ignore[assignment]  # what a socket does when the machine fails
    arena = memoryview(bytearray(1 << 20))
    with pytest.raises(WireEnded) as caught:
        link.receive(arena, 0, arena, arena)
    assert caught.value.reason is CloseReason.SOCKET_FAILED
    assert error_text(error) in str(caught.value)
    near.close()
    far.close()
