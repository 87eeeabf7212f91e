"""The `derp` command as its users meet it: flags, output for people and programs, signals, exit status."""

import json
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from derp.cli import go_style
from derp.keys import NodePrivate
from tests.support.manual_certificates import write_certificate

DEV = ["serve", "--dev", "--listen=127.0.0.1:0", "--stun-port=0"]
# None of the caller's own settings.
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("DERP_")} | {"NO_COLOR": ""}


def run(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "derp", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=ENVIRONMENT | (environ or {}),
    )


class Served:
    """A running `derp serve` and what it has said on stdout."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._rest = b""

    async def line(self) -> str:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            received = await self.process.stdout.receive_some()
            assert received, f"ended after {self.lines}"
            self._rest += received
        line, _, self._rest = self._rest.partition(b"\n")
        self.lines.append(line.decode())
        return self.lines[-1]

    async def events(self) -> list[dict[str, Any]]:
        """All JSON lines up to the one that says that it serves."""
        events: list[dict[str, Any]] = []
        while not events or events[-1]["event"] != "serving":
            events.append(json.loads(await self.line()))
        return events


def _few_files() -> None:
    """What a shell gives: 1,024 files, though more are allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))


@asynccontextmanager
async def serving(*arguments: str, environ: dict[str, str] | None = None) -> AsyncIterator[Served]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "derp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT | (environ or {}),
        preexec_fn=_few_files,
    )
    try:
        with trio.fail_after(60):
            yield Served(process)
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def fetch(port: int, path: str) -> str:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b""
        async for part in stream:
            received += part
    return received.decode()


# Flags.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-a", ":1"], ["--a", ":1"]),
        (["-a=:1"], ["--a=:1"]),
        (["--listen", ":1"], ["--listen", ":1"]),
        (["-stun"], ["--stun=true"]),
        (["--stun=false", "-dev"], ["--stun=false", "--dev=true"]),
        (["-http-port", "-1"], ["--http-port", "-1"]),
        (["-home", "-stun"], ["--home", "-stun"]),
        (["-home"], ["--home"]),
        (["-verify-clients", "-config", "x"], ["--verify-clients=true", "--config", "x"]),
        (["-unknown=1", "-x", "-h", "---a", "-", "--", "word"], ["--unknown=1", "-x", "-h", "---a", "-", "--", "word"]),
    ],
)
def test_flags_are_read_as_go_reads_them(given: list[str], expected: list[str]) -> None:
    assert list(go_style(given)) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "-dev", "-queue-depth", "many"], "derp: flags: --queue-depth: wants a whole number from 1 to"),
        (["serve", "--config=/nonexistent"], "derp: /nonexistent: cannot read the settings: No such file"),
        (["serve", "-ace=true"], "derp: flags: --ace: there is no ACE server here"),
        (["serve", "-secrets-url=http://x"], "derp: flags: --secrets-url: secrets come from files here"),
        (["serve", "-acme-email=a@b"], "derp: flags: --acme-email: has no effect without --cert-mode letsencrypt"),
        (["serve", "-a=:8443", "-acme-ip-certs"], "derp: flags: --acme-ip-certs: has no effect without --cert-mode"),
        (["serve", "-certmode=gcp"], "derp: flags: --hostname: --cert-mode gcp needs a host name"),
        (["serve", "-stun-prot=1"], "No such option '--stun-prot'"),
        (["genkey", "x"], "unexpected extra argument"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_status_2(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_not_ours_is_status_1() -> None:
    done = run(*DEV, "--listen=192.0.2.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot listen on TCP 192.0.2.1:1: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_is_named_when_it_is_wrong() -> None:
    done = run("serve", "--dev", environ={"DERP_STUN_PORT": "x"})
    assert done.stderr.startswith("derp: environment: DERP_STUN_PORT: wants a whole number")


def test_help_shows_both_names_of_a_flag() -> None:
    shown = run("serve", "-h")
    assert shown.returncode == 0
    assert "--listen, --a ADDRESS" in shown.stdout
    assert "--verify-clients" in shown.stdout
    assert "--ace" not in shown.stdout


# serve.


async def test_serve_says_what_it_serves_and_drains_on_sigterm() -> None:
    async with serving(*DEV) as served:
        first = await served.line()
        assert first.startswith("listening on 127.0.0.1:")
        assert first.endswith(" (derp)")
        assert (await served.line()).endswith(" (stun)")
        assert (await served.line()).startswith("public key nodekey:")
        port = int(first.split(":")[1].split()[0])
        assert (await fetch(port, "/derp/probe")).startswith("HTTP/1.1 200 ")
        served.process.send_signal(signal.SIGTERM)
        assert await served.process.wait() == 0
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_serve_speaks_json_to_programs(tmp_path: Path) -> None:
    key = NodePrivate.generate()
    config = tmp_path / "relay.toml"
    config.write_text(f'key_file = "{tmp_path}/derper.key"\nhttp_port = 0\ntls_self_signed = true\nquic = true')
    (tmp_path / "derper.key").write_text(json.dumps({"PrivateKey": key.text()}))
    flags = ["serve", "--json", f"--config={config}", "-a", "127.0.0.1:0", "-stun"]
    async with serving(*flags, environ={"DERP_STUN_PORT": "0"}) as served:
        *listening, derp_map, last = await served.events()
        assert [(event["kind"], event["host"]) for event in listening] == [
            ("derp+tls", "127.0.0.1"),
            ("derp+quic", "127.0.0.1"),
            ("http", "127.0.0.1"),
            ("stun", "127.0.0.1"),
        ]
        node = derp_map["map"]["Regions"]["900"]["Nodes"][0]
        assert node["DERPPort"] == node["QUICPort"] == listening[0]["port"]
        assert node["STUNPort"] == listening[3]["port"]
        assert node["CertName"].startswith("sha256-raw:")
        assert last == {"event": "serving", "public_key": str(key.public())}
        served.process.send_signal(signal.SIGINT)
        assert await served.process.wait() == 0


async def test_sighup_does_not_end_it() -> None:
    async with serving(*DEV, "--json") as served:
        port = (await served.events())[0]["port"]
        served.process.send_signal(signal.SIGHUP)
        assert " 204 " in await fetch(port, "/generate_204")
        assert served.process.poll() is None


async def test_as_many_files_as_allowed() -> None:
    async with serving(*DEV, "--json") as served:
        await served.events()
        soft, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 1024


async def test_people_are_told_what_to_try_and_see_colour_on_a_terminal_only() -> None:
    reader, writer = os.openpty()
    environ = {name: text for name, text in ENVIRONMENT.items() if name not in ("NO_COLOR", "TERM")} | {"TERM": "xterm"}
    with os.fdopen(reader, "rb", buffering=0) as terminal:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "derp", *DEV], stdout=writer, stderr=subprocess.DEVNULL, env=environ
        )
        os.close(writer)
        try:
            shown = b""
            with trio.fail_after(60):
                while b"derp ping" not in shown:
                    await trio.lowlevel.wait_readable(terminal)
                    shown += terminal.read(4096)
        finally:
            process.kill()
            await process.wait()
    assert b"\x1b[1m" in shown


@pytest.mark.parametrize("flags", [(), ("--tls-self-signed", "--http-port=-1"), ("--listen=0.0.0.0:0",)])
async def test_what_to_try_works_when_it_is_pasted(flags: tuple[str, ...]) -> None:
    async with serving(*DEV, *flags) as served:
        while await served.line() != "try:":
            pass
        lines = [await served.line() for _ in range(3)]
        for line in lines:
            assert re.fullmatch(r"  \S.*\S  # \S.*\?", line)
            done = await trio.run_process(
                ["bash", "-c", line], capture_stdout=True, capture_stderr=True, env=ENVIRONMENT
            )
            assert done.stdout
        assert ["/healthz" in lines[0], "/metrics" in lines[1], "ping --via" in lines[2]] == [True] * 3


async def test_by_name_what_to_try_works_as_it_is_printed(tmp_path: Path) -> None:
    """A relay with a certificate for its name shows none to those who call it by its address."""
    write_certificate(tmp_path, "relay.example.org")
    flags = ("--hostname=relay.example.org", "--cert-mode=manual", f"--cert-dir={tmp_path}", "--http-port=-1")
    async with serving(*DEV, *flags) as served:
        while not (line := await served.line()).strip().startswith("curl"):
            pass
        url = next(word for word in line.split() if word.startswith("https://"))
        assert url.startswith("https://relay.example.org:")
        resolve = line.split()[line.split().index("--resolve") + 1]
        name, port, address = resolve.split(":")
        assert url == f"https://{name}:{port}/healthz"
        context = ssl.create_default_context(cafile=tmp_path / "relay.example.org.crt")
        with (
            socket.create_connection((address, int(port)), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=name) as tls,
        ):
            assert tls.getpeercert()


# genkey.


def test_genkey_makes_a_key_file_and_tells_the_public_half() -> None:
    done = run("genkey")
    key = NodePrivate.parse(json.loads(done.stdout)["PrivateKey"])
    assert done.stderr == f"public key {key.public()}\n"
    document = json.loads(run("genkey", "--json").stdout)
    assert str(NodePrivate.parse(document["private_key"]).public()) == document["public_key"]
    assert document["private_key"] != key.text()


def test_a_reader_that_has_seen_enough_is_no_crash() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m derp serve --help | head -1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.startswith("Usage: derp serve")
    assert done.stderr == ""
