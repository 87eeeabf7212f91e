"""Every command of both programs, walked: a full disk, a reader that went away, a narrow encoding, and Ctrl-C.

Each ends with a status and at most a sentence, never with a traceback.  A command that is not in CASES fails the first
test: say there how to make it write something and, if it can wait, what makes it wait.
"""

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import click
import pytest
import trio

from derp.cli import cli as derp
from tailnet.cli.root import cli as tailnet
from tailnet.config import CoordinatorConfig
from tailnet.config.key_file import add_key
from tailnet.node.membership import open_agent
from tailnet.node.speedtest import SPEEDTEST_PORT
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tailnet.store.rows import Right
from tailnet.store.store import Store
from tests.support.administration import grant
from tests.support.command import ENVIRONMENT, inner_commands
from tests.support.forked import Loaded, loaded
from tests.support.inprocess import HOST, map_of, node_of, open_relay_here, port_of
from tests.support.seeds import NOW, agent_token, defined_document, fill, make_id, peer_id, seed_document, user_token
from tests.support.speedtests import serve_speedtest

WIDE = {"PYTHONIOENCODING": "utf-8"}
PATIENCE_SECONDS = 60.0  # a hang guard: a cold start on a busy machine takes seconds
NARROW = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@dataclass(frozen=True)
class World:
    """What arguments are made of: a relay, files, and a port that takes connections and never answers."""

    url: str
    silent: str
    map: str
    seed: str
    store: str
    backup: str  # no file yet
    saved: str  # a backup
    fresh: str  # no store yet
    keys: str  # that encrypt secrets
    bundle: str  # no file yet
    app: str  # the id of an app in it
    script: str
    key: str  # of a key that only verifies
    coordinator: str  # its URL, with an agent that has come in; only for the commands in REACHES
    token: str  # of a user who may reach the agent
    config: str  # the folder of users' settings


@dataclass(frozen=True)
class Case:
    """`writes`: arguments with which a command has something to say.  `waits`: with which it waits: for a terminal, for
    a server that is silent, or, once it has said `until`, for its end.  None: it never waits."""

    writes: str
    waits: str | None = None
    until: bytes = b""

    def words(self, line: str, world: World) -> list[str]:
        return [word.format_map(vars(world)).replace("resume@token", "resume token") for word in line.split()]


ASKS = b"y/N"

CASES: dict[str, Case] = {
    "derp serve": Case("--dev --listen=127.0.0.1:0 --stun-port=0", "--dev --listen=127.0.0.1:0 --stun-port=0", b"try:"),
    "derp genkey": Case(""),
    "derp ping": Case("--via={url} --count=1", "--via={silent}"),
    "derp netcheck": Case("{map}", "-"),
    "derp probe": Case("{map} --delay-packets=0 --bandwidth-bytes=0", "{silent}"),
    "derp map lint": Case("{map} --strict", "-"),
    "derp map show": Case("{map}", "-"),
    "derp map steer": Case("{map}", "-"),
    "derp map snippet": Case("{url}", "{silent}"),
    "derp drain": Case("--help"),  # a process of ours would have to end: tests/derp/test_cli_drain.py
    "tailnet drain": Case("--help"),  # as above: tests/tailnet/cli/test_drain.py
    "derp invite list": Case("--help"),  # its own arguments stand before `list`: tests/derp/test_cli_invite.py
    "derp invite revoke": Case("--help"),
    "derp admission new-issuer": Case(""),
    "derp admission sign": Case("--help"),  # wants an issuer's key: tests/derp/test_cli_admission.py
    "derp admission show": Case("--help"),
    "derp admission ticket": Case("--help"),
    "derp admission check-log": Case("/dev/null"),
    "derp ledger totals": Case("--help"),  # wants a ledger: tests/derp/test_cli_ledger.py
    "derp ledger export": Case("--help"),  # wants an issuer's key: tests/derp/test_cli_ledger.py
    "derp ledger verify": Case("--help"),
    "tailnet serve": Case(
        "--dev --listen=127.0.0.1:0 --stun-listen=off", "--dev --listen=127.0.0.1:0 --stun-listen=off", b"try:"
    ),
    "tailnet demo": Case("", "", b"relay"),
    "tailnet admin import": Case("{seed} --store={store}", "- --store={store}"),
    "tailnet admin bundle": Case("{bundle} --url={url} --no-store"),
    "tailnet health": Case("{url}", "{silent}"),
    "tailnet replicas": Case("{url}", "{silent}"),
    "tailnet login": Case("{coordinator} --token={token}", "{silent} --token=x"),
    "tailnet logout": Case(""),
    "tailnet agent": Case("--help"),  # it writes a log alone, and Ctrl-C is a good end: tests/tailnet/cli/test_agent.py
    "tailnet agents": Case("--url={coordinator} --token={token}", "--url={silent} --token=x"),
    "tailnet ping": Case("--url={coordinator} --token={token} --relay-only -c 1 main", "--url={silent} --token=x main"),
    "tailnet netcheck": Case("--url={coordinator} --token={token}", "--url={silent} --token=x"),
    "tailnet admin export": Case("--store={store}"),
    "tailnet admin audit": Case("--store={store}"),
    "tailnet port-forward": Case(
        "--url={coordinator} --token={token} --tcp=0:9 main",
        "--url={coordinator} --token={token} --tcp=0:9 main",
        b"leads to",
    ),
    "tailnet ssh": Case("--help"),  # it becomes OpenSSH's ssh, and Ctrl-C is that one's
    "tailnet cp": Case("--help"),  # it becomes OpenSSH's scp
    "tailnet config-ssh": Case("--dry-run"),
    "tailnet speedtest": Case("--url={coordinator} --token={token} --time=0.2 main", "--url={silent} --token=x main"),
    "tailnet admin user create": Case("--username=carol --store={store}"),
    "tailnet admin user list": Case("--store={store}"),
    "tailnet admin user show": Case("alice --store={store}"),
    "tailnet admin user update": Case("alice --role=auditor --store={store}"),
    "tailnet admin user delete": Case("alice --yes --store={store}", "alice --store={store}", ASKS),
    "tailnet admin token create": Case("--user=alice --store={store}"),
    "tailnet admin token list": Case("--store={store}"),
    "tailnet admin token show": Case("alicexxxxx --store={store}"),
    "tailnet admin token update": Case("alicexxxxx --purpose=ci --store={store}"),
    "tailnet admin token delete": Case("alicexxxxx --yes --store={store}", "alicexxxxx --store={store}", ASKS),
    "tailnet admin token rotate": Case("alicexxxxx --grace=1h --store={store}"),
    "tailnet admin token revoke": Case("--user=alice --yes --store={store}", "alicexxxxx --store={store}", ASKS),
    "tailnet admin workspace create": Case("--owner=alice --name=lab --store={store}"),
    "tailnet admin workspace list": Case("--store={store}"),
    "tailnet admin workspace show": Case("alice/dev --store={store}"),
    "tailnet admin workspace update": Case("dev --status=stopped --store={store}"),
    "tailnet admin workspace delete": Case("dev --yes --store={store}", "dev --store={store}", ASKS),
    "tailnet admin workspace grant": Case("dev bob ssh --store={store}"),
    "tailnet admin workspace grants": Case("dev --store={store}"),
    "tailnet admin workspace revoke-grant": Case(
        "shop alice --yes --store={store}", "shop alice --store={store}", ASKS
    ),
    "tailnet admin agent create": Case("--workspace=dev --name=new --store={store}"),
    "tailnet admin agent list": Case("--store={store}"),
    "tailnet admin agent show": Case("main --store={store}"),
    "tailnet admin agent update": Case("main --directory=/x --store={store}"),
    "tailnet admin agent delete": Case("main --yes --store={store}", "main --store={store}", ASKS),
    "tailnet admin agent rotate": Case("main --store={store}"),
    "tailnet admin agent revoke": Case("main --yes --store={store}", "main --store={store}", ASKS),
    "tailnet admin app create": Case("--agent=main --slug=new --store={store}"),
    "tailnet admin app list": Case("--store={store}"),
    "tailnet admin app show": Case("{app} --store={store}"),
    "tailnet admin app update": Case("{app} --display-name=x --store={store}"),
    "tailnet admin app delete": Case("{app} --yes --store={store}", "{app} --store={store}", ASKS),
    "tailnet admin script create": Case("--agent=main --store={store}"),
    "tailnet admin script list": Case("--store={store}"),
    "tailnet admin script show": Case("{script} --store={store}"),
    "tailnet admin script update": Case("{script} --cron=x --store={store}"),
    "tailnet admin script delete": Case("{script} --yes --store={store}", "{script} --store={store}", ASKS),
    "tailnet admin key list": Case("--store={store}"),
    "tailnet admin key show": Case("{key} --store={store}"),
    "tailnet admin key rotate": Case("resume@token --store={store}"),
    "tailnet admin key revoke": Case("{key} --yes --store={store}", "{key} --store={store}", ASKS),
    "tailnet admin store check": Case("--store={store}"),
    "tailnet admin store vacuum": Case("--store={store}"),
    "tailnet admin store backup": Case("{backup} --store={store}"),
    "tailnet admin store restore": Case("{saved} --store={fresh}"),
    "tailnet admin secrets new-key": Case("{keys}"),
    "tailnet admin secrets reseal": Case("--secrets-key-file={keys} --store={store}"),
    "tailnet admin secrets ssh-key": Case("alice --rotate --secrets-key-file={keys} --store={store}"),
}


def fill_for_commands(store: Store) -> str:
    """A small world with something to show and to delete of each kind; the id of a key that only verifies."""
    fill(store, defined_document())
    grant(store, "shop", "alice", Right.SSH)
    key = store.keys.signing_keys("resume token", NOW, os.urandom)[0]
    store.keys.signing_keys("resume token", NOW + timedelta(days=31), os.urandom)
    return key.id


# Made by the same function as another one, tailnet/cli/admin_resources.py, of which one stands for all.
TWINS = {
    f"tailnet admin {kind} {verb}"
    for kind in ("token", "workspace", "agent", "app", "script")
    for verb in ("create", "list", "show", "update", "delete")
}
# They talk to a coordinator.
REACHES = tuple(f"tailnet {name}" for name in ("login", "agents", "ping", "netcheck", "port-forward", "speedtest"))
SERVERS = ("derp serve", "tailnet serve")
# What they make is there the second time, or what they delete is not.
ONCE = (
    "tailnet admin bundle",
    "tailnet admin store backup",
    "tailnet admin store restore",
    "tailnet admin user create",
    "tailnet admin app create",
    "tailnet admin token rotate",
    *(name for name in CASES if name.split()[-1] in ("delete", "revoke", "revoke-grant")),
)


def commands(command: click.Command, name: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for inner, one in inner_commands(command):
            yield from commands(one, f"{name} {inner}")
    else:
        yield name


EVERY = [*commands(derp, "derp"), *commands(tailnet, "tailnet")]
ALL = [name for name in EVERY if name not in TWINS]


def test_every_command_has_its_case() -> None:
    assert set(CASES) == set(EVERY)
    assert set(EVERY) >= TWINS


@asynccontextmanager
async def open_reachable(folder: Path) -> AsyncIterator[str]:
    """The URL of a coordinator with a store of its own and the agent `main`."""
    store = f"sqlite:///{folder}/reachable.db"
    shutil.copy(folder / "tailnet.db", folder / "reachable.db")
    config = CoordinatorConfig(listen=((HOST, 0),), stun_listen=(), store=store, drain_seconds=2.0)
    async with trio.open_nursery() as nursery:
        server: CoordinatorServer = await nursery.start(serve_coordinator, config, None)
        url = f"http://{HOST}:{server.listening[0].port}"
        async with open_agent(url, agent_token("main"), peer_id("main")) as agent:
            nursery.start_soon(trio.serve_listeners, serve_speedtest, [agent.engine.listen(SPEEDTEST_PORT)])
            yield url
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of that world, made once, and what fill_for_commands() told."""
    path = tmp_path_factory.mktemp("made") / "tailnet.db"
    store = Store.open(f"sqlite:///{path}")
    key = fill_for_commands(store)
    store.close()
    return path, key


@pytest.fixture
async def world(tmp_path: Path, made: tuple[Path, str], request: pytest.FixtureRequest) -> AsyncIterator[World]:
    callspec = getattr(request.node, "callspec", None)
    reaches = callspec is not None and callspec.params.get("name") in REACHES
    async with open_relay_here(tls=False) as server, AsyncExitStack() as stack:
        text = json.dumps(map_of(node_of(server, 901)).to_json()).replace("Region 901", "Zürich 東京")
        (tmp_path / "map.json").write_text(text, encoding="utf-8")
        (tmp_path / "seed.json").write_text(json.dumps(seed_document()))
        for name in ("tailnet.db", "saved.db"):
            shutil.copy(made[0], tmp_path / name)
        add_key(tmp_path / "secrets.keys")
        coordinator = await stack.enter_async_context(open_reachable(tmp_path)) if reaches else ""
        with socket.create_server((HOST, 0)) as silent:
            yield World(
                url=f"http://{HOST}:{port_of(server)}",
                silent=f"http://{HOST}:{silent.getsockname()[1]}",
                map=str(tmp_path / "map.json"),
                seed=str(tmp_path / "seed.json"),
                store=f"sqlite:///{tmp_path}/tailnet.db",
                backup=str(tmp_path / "backup.db"),
                saved=str(tmp_path / "saved.db"),
                fresh=f"sqlite:///{tmp_path}/fresh.db",
                keys=str(tmp_path / "secrets.keys"),
                bundle=str(tmp_path / "bundle.zip"),
                app=str(make_id("editor of main")),
                script=str(make_id("start of main")),
                key=made[1],
                coordinator=coordinator,
                token=user_token("alice"),
                config=str(tmp_path / "config"),
            )


@pytest.fixture(scope="module")
def wide() -> Iterator[Loaded]:
    with loaded(ENVIRONMENT | WIDE) as commands:
        yield commands


@pytest.fixture(scope="module")
def narrow() -> Iterator[Loaded]:
    with loaded(ENVIRONMENT | NARROW) as commands:
        yield commands


async def run(
    commands: Loaded, world: World, words: list[str], stdout: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    environ = {"XDG_CONFIG_HOME": world.config}  # whoever runs these tests keeps his own login
    with trio.fail_after(PATIENCE_SECONDS):
        return await commands.run(words, environ, stdout)


def words_of(name: str, line: str, world: World) -> list[str]:
    return [*name.split(), *CASES[name].words(line, world)]


@pytest.mark.parametrize("name", ALL)
async def test_a_full_disk(name: str, world: World, wide: Loaded) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = await run(wide, world, words_of(name, CASES[name].writes, world), stdout=full)
    os.close(full)
    assert done.returncode == 1
    assert complaints(done) == ["cannot write the output: No space left on device"]


def complaints(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    lines = [line for line in done.stderr.decode().splitlines() if "cannot write" in line]
    # A server's last word goes into its log, which is JSON where nobody watches.
    return [json.loads(line)["message"] if line.startswith("{") else line.partition(": ")[2] for line in lines]


@pytest.mark.parametrize("name", ALL)
async def test_a_reader_that_has_gone(name: str, world: World, wide: Loaded) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = await run(wide, world, words_of(name, CASES[name].writes, world), stdout=writer)
    os.close(writer)
    assert done.returncode == 141
    assert complaints(done) == ["cannot write the output: Broken pipe"]


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*SERVERS, *ONCE, "tailnet port-forward")])
async def test_a_narrow_encoding(name: str, world: World, wide: Loaded, narrow: Loaded) -> None:
    words = words_of(name, CASES[name].writes, world)
    in_utf_8, in_ascii = await run(wide, world, words), await run(narrow, world, words)
    assert in_ascii.returncode == in_utf_8.returncode
    assert b"Traceback" not in in_ascii.stderr
    assert in_ascii.stdout.count(b"\n") == in_utf_8.stdout.count(b"\n") > 0
    if name == "derp map show":
        assert "Zürich 東京".encode() in in_utf_8.stdout
        assert rb"Z\xfcrich \u6771\u4eac" in in_ascii.stdout


# Ctrl-C.


@asynccontextmanager
async def on_a_terminal(words: list[str]) -> AsyncIterator[tuple[trio.Process, int]]:
    """A process whose terminal we are; Ctrl-C typed there is SIGINT, as for a person."""
    ours, its = pty.openpty()
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
             "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])", *words],
            stdin=its, stdout=its, stderr=its, start_new_session=True, env=ENVIRONMENT,
        )  # fmt: skip
    finally:
        os.close(its)
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        os.close(ours)


def is_reading_the_terminal(pid: int) -> bool:
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            call, *arguments = (task / "syscall").read_text().split()
        except (OSError, ValueError):
            continue
        if call in ("0", "63") and arguments[0] == "0x0":  # read(0, ...) of x86-64 and of arm64
            return True
    return False


async def everything_said(terminal: int) -> bytes:
    said = b""
    while True:
        try:
            part = await trio.to_thread.run_sync(os.read, terminal, 4096)
        except OSError:  # nobody has the other end any more
            return said
        if not part:
            return said
        said += part


async def said_until(terminal: int, word: bytes) -> bytes:
    said = b""
    while word not in said:
        said += await trio.to_thread.run_sync(os.read, terminal, 4096)
    return said


@pytest.mark.parametrize("name", [name for name in ALL if CASES[name].waits is not None])
async def test_ctrl_c_ends_it_at_once(name: str, world: World) -> None:
    case = CASES[name]
    assert case.waits is not None
    with trio.fail_after(PATIENCE_SECONDS):
        with socket.create_server((HOST, 0)) as silent:
            silent.setblocking(False)
            here = World(**{**vars(world), "silent": f"http://{HOST}:{silent.getsockname()[1]}"})
            async with on_a_terminal(words_of(name, case.waits, here)) as (process, terminal):
                said = b""
                if case.until:
                    said = await said_until(terminal, case.until)
                if "-" in case.waits.split() or case.until == ASKS:  # before it reads, Python would not see it
                    while not is_reading_the_terminal(process.pid):  # noqa: ASYNC110  # the kernel tells nobody
                        await trio.sleep(0.01)
                if "{silent}" in case.waits:
                    await trio.lowlevel.wait_readable(silent)  # it has dialled, and waits for what never comes
                os.write(terminal, b"\x03")
                status = await process.wait()
                said += await everything_said(terminal)
    # A server was asked to end in order, and has.
    assert status == (0 if name in SERVERS else 130)
    assert b"Traceback" not in said
    assert b"Fatal Python error" not in said


async def test_ctrl_c_while_modules_are_loaded() -> None:
    for name in ("derp.__main__", "tailnet.cli"):
        # The first import that a command makes is where somebody presses Ctrl-C.
        script = (
            "import builtins, sys\n"
            "real = builtins.__import__\n"
            "def imported(name, *rest):\n"
            "    if name.endswith(('derp.cli', 'tailnet.cli.root')):\n"
            "        raise KeyboardInterrupt\n"
            "    return real(name, *rest)\n"
            f"from {name} import main\n"
            "builtins.__import__ = imported\n"
            "main()\n"
        )
        done = await trio.run_process([sys.executable, "-c", script], capture_stderr=True, check=False, env=ENVIRONMENT)
        assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"")
