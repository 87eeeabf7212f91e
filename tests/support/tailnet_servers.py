"""A coordinator as a process: ours, or the Go baseline of tests/interop/go_tailnet, seeded with the same file.

`running_server(kind, folder, seed)` is a plain context manager, so that benches use it too.  No pytest here.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.support.gobuild import ROOT, TAILNET_COORDINATOR, build

ServerKind = Literal["ours", "go-baseline"]

TAILNET_COMMAND = [sys.executable, "-m", "tailnet"]
# Hang guards, never part of what is asserted.
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# Genuine peers trust these two prefixes; an address is one of them and the last ten bytes of the id.
TAILSCALE_PREFIX = bytes.fromhex("fd7a115ca1e0")
CODER_PREFIX = bytes.fromhex("fd60627aa42b")


class ServerFailed(Exception):
    """The server did not start; the text holds what it printed."""


@dataclass(frozen=True, slots=True)
class User:
    id: uuid.UUID
    username: str
    token: str


@dataclass(frozen=True, slots=True)
class Agent:
    id: uuid.UUID
    token: str
    name: str
    workspace_id: uuid.UUID
    workspace_name: str
    owner: User


@dataclass(slots=True)
class Seed:
    """Users and agents, with ids and tokens that follow from their numbers."""

    users: list[User] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    definitions: dict[uuid.UUID, dict[str, Any]] = field(default_factory=dict)  # apps, scripts, metadata by agent

    def add_user(self, username: str) -> User:
        number = len(self.users) + 1
        # The form of the field's session tokens: ten characters, a hyphen, twenty-two.
        user = User(_uuid(1, number), username, f"user{number:06d}-{number:022d}")
        self.users.append(user)
        return user

    def add_agent(self, owner: User) -> Agent:
        number = len(self.agents) + 1
        name = f"agent{number}"
        agent = Agent(_uuid(2, number), str(_uuid(3, number)), name, _uuid(4, number), f"workspace{number}", owner)
        self.agents.append(agent)
        return agent

    def text(self) -> str:
        users = [{"id": str(u.id), "username": u.username, "token": u.token} for u in self.users]
        agents = [
            {
                "id": str(a.id),
                "token": a.token,
                "name": a.name,
                "workspace_id": str(a.workspace_id),
                "workspace_name": a.workspace_name,
                "owner_id": str(a.owner.id),
                **self.definitions.get(a.id, {}),
            }
            for a in self.agents
        ]
        return json.dumps({"users": users, "agents": agents})


def _uuid(kind: int, number: int) -> uuid.UUID:
    """A valid version 4 UUID that shows what it names: kind and number."""
    return uuid.UUID(bytes=bytes([kind]) * 6 + b"\x40\x00\x80\x00" + number.to_bytes(6, "big"))


def address(prefix: bytes, ident: uuid.UUID) -> str:
    """The /128 that a peer derives from an id."""
    groups = (prefix + ident.bytes[6:]).hex()
    return ":".join(groups[i : i + 4] for i in range(0, 32, 4)) + "/128"


@dataclass(slots=True)
class Server:
    """A running coordinator.  `derp_map` is the file it watches."""

    kind: ServerKind
    url: str
    process: "subprocess.Popen[bytes]"
    derp_map: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> None:
        """Ask it to stop gracefully; running_server() waits for it."""
        self.process.send_signal(signal.SIGTERM)

    def reload(self) -> None:
        """Ask it to read its files again."""
        self.process.send_signal(signal.SIGHUP)

    def write_derp_map(self, regions: dict[str, Any]) -> None:
        """Lay these regions over the embedded one, as a map file with Go field names; None drops one."""
        fresh = self.derp_map.with_suffix(".new")
        fresh.write_text(json.dumps({"Regions": regions}))
        fresh.replace(self.derp_map)


@contextmanager
def running_server(
    kind: ServerKind,
    folder: Path,
    seed: Seed,
    *,
    environment: dict[str, str] | None = None,
    store: str = "",
    program: Sequence[str] = TAILNET_COMMAND,
) -> Iterator[Server]:
    """Start, seed, give, stop.  Raises ServerFailed; GoMissing and BuildFailed for the baseline.

    `store`: the URL of an empty one; "" is a file in the folder.  `program`: what runs ours, if not the command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seed_file, derp_map = folder / "seed.json", folder / "derp-map.json"
    derp_map.write_text('{"Regions":{}}')
    environ = {**os.environ, **(environment or {})}
    if kind == "go-baseline":
        seed_file.write_text(seed.text())
        command = [str(build(TAILNET_COORDINATOR)), "-seed", str(seed_file), "-derp-map", str(derp_map)]
    else:
        store = import_seed(folder, seed, store, program)
        where = ["--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0", "--store", store]
        command = [*program, "serve", *where, "--derp-map", str(derp_map)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
    try:
        yield Server(kind, _url(process, folder / "server.log"), process, derp_map)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def import_seed(folder: Path, seed: Seed, store: str = "", program: Sequence[str] = TAILNET_COMMAND) -> str:
    """Put a seed into the store of our server in this folder, which may be running; gives the store's URL.

    `store`: the URL of another one.
    """
    seed_file = folder / "seed.json"
    seed_file.write_text(seed.text())
    store = store or f"sqlite:///{folder / 'store.db'}"
    done = subprocess.run(
        [*program, "admin", "import", str(seed_file), "--store", store],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServerFailed(f"admin import: {done.stdout}{done.stderr}")
    return store


def _url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Read what it prints until it says where it listens."""
    assert process.stdout is not None
    printed = b""
    deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            chunk = os.read(process.stdout.fileno(), 4096)
            printed += chunk
            found = re.search(rb"listening on (?:http://)?(127\.0\.0\.1:\d+)", printed)
            if found:
                return f"http://{found.group(1).decode()}"
            if not chunk:
                break
    process.kill()
    process.wait()
    raise ServerFailed(f"{process.args!r} did not say where it listens:\n{printed.decode()}{log.read_text()}")
