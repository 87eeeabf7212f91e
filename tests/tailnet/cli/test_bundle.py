"""`tailnet admin bundle`: what is in it, with the server and without, and that no secret is."""

import base64
import json
import os
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from click.testing import CliRunner, Result

from derp.keys import MeshKey
from tailnet.cli.bundle import _pairs
from tailnet.cli.root import cli
from tailnet.config import load_config
from tailnet.config.coordinator import BusPlace
from tailnet.proto.generated import agent_pb2 as proto
from tailnet.server.server import CoordinatorServer
from tailnet.store.schema import metadata as schema
from tailnet.store.store import Store
from tests.support.certificates import issue
from tests.support.logs import own_log
from tests.support.postgresql import PASSWORD
from tests.support.seeds import agent_token, peer_id, user_token
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    RefusedUpgrade,
    client_door,
    dial,
    open_connection,
    open_peer,
    read_answer,
)

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN, GPU = peer_id("main"), peer_id("gpu")
MESH = MeshKey(os.urandom(32))
WRITTEN = "whatAnAgentWrote77"
URL_PASSWORD, URL_TOKEN, HOOK_SECRET = "hunter2-in-a-url", "tokenInAQuery12345", "s3cretOfTheHook99"


async def bundle(*words: str) -> Result:
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["admin", "bundle", *words]))


def unpacked(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def url_of(server: CoordinatorServer) -> str:
    listening = server.listening[0]
    return f"{'https' if listening.kind.endswith('+tls') else 'http'}://127.0.0.1:{listening.port}"


def spellings(secret: bytes) -> Iterator[str]:
    """How bytes may stand in a text."""
    yield secret.hex()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")
    yield repr(secret)[2:-1]


def secrets_of(store: Store) -> dict[str, set[str]]:
    """All that the store holds and nobody may see, by what it is."""
    with store.reading() as connection:
        # Whatever is bytes is a key or a digest, also in tables that are yet to come.
        found = {
            f"{table.name}.{column.name}": {
                text for value in connection.execute(sa.select(column)).scalars() if value for text in spellings(value)
            }
            for table in schema.tables.values()
            for column in table.columns
            if isinstance(column.type, sa.LargeBinary)
        }
    assert all(found[name] for name in ("signing_keys.secret", "agents.token_digest", "user_tokens.secret_digest"))
    return found | {
        "agent's token": {agent_token(name) for name in ("main", "gpu", "web")},
        "secret of a user's token": {user_token(name).partition("-")[2] for name in ("alice", "bob")},
    }


@pytest.fixture
def settings_file(tmp_path: Path, filled_url: str) -> Path:
    """Settings with a secret wherever one can stand."""
    (tmp_path / "mesh.key").write_text(MESH.raw.hex())
    (tmp_path / "mesh.key").chmod(0o600)
    leaf = issue("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(leaf.pem)
    (tmp_path / "key.pem").write_bytes(leaf.key_pem)
    (tmp_path / "key.pem").chmod(0o600)
    path = tmp_path / "tailnet.toml"
    path.write_text(
        f'store = "{filled_url}"\n'
        f'derp_map_url = ["http://ops:{URL_PASSWORD}@127.0.0.1:9/map?token={URL_TOKEN}"]\n'
        f'relay_mesh_psk_file = "{tmp_path}/mesh.key"\n'
        f'relay_verify_client_url = "http://127.0.0.1:9/verify?secret={HOOK_SECRET}"\n'
        f'tls_cert = "{tmp_path}/cert.pem"\ntls_key = "{tmp_path}/key.pem"\n'
        'listen = "127.0.0.1:0"\nhostname = "127.0.0.1"\nstun_listen = "off"\n'
    )
    return path


@pytest.mark.stores
async def test_no_secret_is_in_it(
    serve: Serve, settings_file: Path, filled_url: str, store_kind: str, tmp_path: Path
) -> None:
    config = load_config(config_file=str(settings_file), environ={}, open_files=1 << 20)
    with own_log(level="debug"):
        server = await serve(relay=config.relay, derp_map_url=config.derp_map_url, given=config.given, tls=config.tls)
        async with (
            open_peer(server, AGENT_DOOR, agent_token("main"), context=trusting()) as agent,
            open_peer(server, client_door(MAIN), user_token("alice"), context=trusting()) as client,
        ):
            written = proto.BatchCreateLogsRequest(logs=[{"output": WRITTEN}])
            await agent.call(AGENT + "BatchCreateLogs", written, proto.BatchCreateLogsResponse)
            await (await client.coordinate()).tunnel(MAIN)
            await ask_in_every_way(server)
            found = await bundle(
                str(tmp_path / "b.zip"), "--url", url_of(server), "--config", str(settings_file), "--store", filled_url
            )
    assert found.exit_code == 0, found.output
    parts = unpacked(tmp_path / "b.zip")
    assert {"settings.json", "health.json", "server/log.txt", "server/metrics.txt", "store.json"} <= parts.keys()
    whole = "\n".join(f"{name}\n{text}" for name, text in parts.items())
    secrets = secrets_of(server.store) | {
        "mesh key": set(spellings(MESH.raw)),
        "TLS key": set((tmp_path / "key.pem").read_text().splitlines()[1:-1]),
        "password of a URL": {URL_PASSWORD, URL_TOKEN, HOOK_SECRET},
        "password of the database": {PASSWORD} if store_kind == "postgresql" else set(),
        "what agents wrote": {WRITTEN},
    }
    for what, texts in secrets.items():
        for text in texts:
            lines = [line for line in whole.splitlines() if text.lower() in line.lower()]
            assert lines == [], f"{what} is in the bundle"
    assert "<secret>" in parts["settings.json"]
    assert str(MAIN) in whole, "the grep looks at what is in it"


def trusting() -> object:
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def ask_in_every_way(server: CoordinatorServer) -> None:
    """Requests with tokens wherever a token can stand, right ones and wrong ones, so that the log has a say."""
    token = user_token("alice")
    for request in (
        f"GET /api/v2/users/me?coder_session_token={token} HTTP/1.1\r\nHost: x",
        f"GET /api/v2/users/me HTTP/1.1\r\nHost: x\r\nCookie: coder_session_token={token}",
        f"GET /api/v2/users/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}",
        f"GET /nowhere/{token}?token={token} HTTP/1.1\r\nHost: x",
    ):
        async with open_connection(server, context=trusting()) as stream:  # type: ignore[arg-type]
            await stream.send_all(f"{request}\r\nConnection: close\r\n\r\n".encode())
            await read_answer(stream)
    with pytest.raises(RefusedUpgrade):
        await dial(server, client_door(MAIN), agent_token("gpu"), context=trusting())  # type: ignore[arg-type]


async def test_what_is_in_it(server: CoordinatorServer, tmp_path: Path) -> None:
    with own_log():
        async with (
            open_peer(server, AGENT_DOOR, agent_token("main")) as agent,
            open_peer(server, client_door(MAIN), user_token("alice")) as client,
        ):
            theirs = await client.coordinate()
            await (await agent.coordinate()).update(agent.node(MAIN))
            await theirs.tunnel(MAIN)
            await theirs.next_node()
            said = await bundle(str(tmp_path / "b.zip"), "--url", url_of(server), "--store", server.config.store)
    assert said.exit_code == 0
    parts = unpacked(tmp_path / "b.zip")
    assert said.stdout.startswith(f"{tmp_path}/b.zip: {len(parts)} parts, ")
    assert json.loads(parts["health.json"])["state"] == "warning"
    assert parts["health.txt"].startswith("warning: one thing is wrong")
    assert "tailnet_peers 2.0" in parts["server/metrics.txt"]
    assert "> agent main" in parts["server/log.txt"]
    assert json.loads(parts["server/derp-map.json"])["Regions"]["999"]["RegionCode"] == "embedded"
    assert json.loads(parts["server/settings.json"])["settings"]["store"] == server.config.store
    assert json.loads(parts["versions.json"])["trio"] == trio.__version__
    assert json.loads(parts["store.json"])["rows"]["agents"] == 3
    [why] = [text for name, text in parts.items() if name.startswith("why/")]
    assert str(MAIN) in why
    assert "Tokens" in parts["README.txt"] or "tokens" in parts["README.txt"]
    assert "- nothing" in parts["README.txt"]
    assert (tmp_path / "b.zip").stat().st_mode & 0o777 == 0o600
    again = await bundle(str(tmp_path / "b.zip"), "--url", url_of(server), "--no-store")
    assert again.exit_code != 0
    assert "is there already" in str(again.exception)


async def test_without_the_server_there_is_less_in_it(tmp_path: Path, filled_url: str) -> None:
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        said = await bundle(str(tmp_path / "b.zip"), "--url", url, "--store", filled_url, "--json")
    assert said.exit_code == 0
    outcome = json.loads(said.stdout)
    assert outcome["parts"] == ["README.txt", "settings.json", "store.json", "versions.json"]
    [missing] = outcome["missing"]
    assert missing.startswith(f"all of server/: {url} cannot be asked: ")
    assert missing in unpacked(tmp_path / "b.zip")["README.txt"]


async def test_without_a_store_there_is_still_the_rest(tmp_path: Path, server: CoordinatorServer) -> None:
    said = await bundle(str(tmp_path / "b.zip"), "--url", url_of(server), "--store", "sqlite:////nowhere/x.db")
    assert said.exit_code == 0
    parts = unpacked(tmp_path / "b.zip")
    assert "server/metrics.txt" in parts
    assert "store.json: store /nowhere/x.db" in parts["README.txt"]


def test_pairs_that_do_not_know_each_other_come_first() -> None:
    a, b, c = "a", "b", "c"
    peers = [
        {"peer_id": a, "told": [b], "tunnels_to": [b, c]},
        {"peer_id": b, "told": [], "tunnels_to": []},
        {"peer_id": c, "told": [], "tunnels_to": [a]},
    ]
    assert _pairs({"peers": peers}) == [(a, c), (c, a), (a, b)]


async def test_of_a_replica_it_has_how_that_sees_the_others(
    tmp_path: Path, serve: Callable[..., Awaitable[CoordinatorServer]]
) -> None:
    server = await serve(bus=BusPlace("static", ()), bus_secret=bytes(32), replica_name="fra-1")
    said = await bundle(str(tmp_path / "b.zip"), "--url", url_of(server), "--no-store")
    assert said.exit_code == 0, said.stdout
    seen = json.loads(unpacked(tmp_path / "b.zip")["server/replicas.json"])
    assert (seen["name"], seen["replicas"], seen["findings"]) == ("fra-1", [], [])
