"""Containers and devcontainers as an agent's HTTP API shows them, followed and built anew.  Layer L3.

A devcontainer is what the manifest says is one, or a container that the devcontainers' own command line has marked.
Building one is that command line's work, and goes on when the request is answered.  Next hop: containers.py.
"""

import logging
import shutil
from collections.abc import AsyncGenerator, Iterator
from pathlib import PurePath
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import trio

from tailnet.agent.containers import ContainerError, list_containers, run_command
from tailnet.agent.context import Context
from tailnet.proto.generated.agent_pb2 import Manifest
from tailnet.refusals import Refused

_log = logging.getLogger("tailnet.agent")

# The engine's command line is asked once for all who ask within this time.
FRESH_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 5.0
# Images are fetched and compiled meanwhile.
BUILD_SECONDS: Final = 3600.0
MAX_BUILDS: Final = 4
MAX_DEFINED: Final = 100
UUID_BYTES: Final = 16
_FOLDER_LABEL: Final = "devcontainer.local_folder"
_CONFIG_LABEL: Final = "devcontainer.config_file"
_NO_CLI: Final = "`devcontainer` is not in PATH: npm install -g @devcontainers/cli"


class Devcontainers:
    """Those of one agent."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._listed: list[dict[str, Any]] = []
        self._listed_at = -FRESH_SECONDS
        self._builds: dict[str, str] = {}  # by id; "" while it runs, else what went wrong

    async def describe(self, context: Context) -> dict[str, Any]:
        """All of them.  Raises Refused where there is no engine."""
        containers = await self._containers()
        found = {each["workspace_folder"]: each for each in _of_manifest(context.manifest)}
        for one in containers:
            folder = one["labels"].get(_FOLDER_LABEL)
            if folder:
                described = found.setdefault(folder, _of_container(folder, one["labels"].get(_CONFIG_LABEL)))
                # Of several of one folder the one that runs; the others are what is left of earlier builds.
                if one["running"] or "container" not in described:
                    described |= {"container": one, "status": "running" if one["running"] else "stopped"}
        by_id = {each["id"]: each for each in found.values()}
        # What went wrong with one that is gone is nobody's news, and would be kept for ever.
        self._builds = {build_id: error for build_id, error in self._builds.items() if not error or build_id in by_id}
        for build_id, error in self._builds.items():
            if build_id in by_id:
                by_id[build_id] |= {"status": "error", "error": error} if error else {"status": "starting"}
        devcontainers = sorted(by_id.values(), key=lambda each: (each["name"], each["id"]))
        return {"devcontainers": devcontainers, "containers": containers}

    async def watch(self, context: Context) -> AsyncGenerator[dict[str, Any], None]:
        """What there is, and again whenever that changes.  Raises Refused when the engine is gone."""
        before = None
        while True:
            now = await self.describe(context)
            if now != before:
                yield now
                before = now
            await trio.sleep(WATCH_SECONDS)

    async def recreate(self, devcontainer_id: str, context: Context) -> dict[str, Any]:
        """Begin to build one anew.  Raises Refused."""
        known = {each["id"]: each for each in (await self.describe(context))["devcontainers"]}
        one = known.get(devcontainer_id)
        if one is None:
            raise Refused(404, "Devcontainer not found.", f"There is none with id {devcontainer_id!r}.")
        name = one["name"]
        if one["status"] == "starting":
            detail = f'Devcontainer "{name}" is currently starting and cannot be restarted.'
            raise Refused(409, "Unable to recreate transitioning devcontainer", detail)
        command = shutil.which("devcontainer")
        if command is None:
            raise Refused(500, "Unable to recreate devcontainer", _NO_CLI)
        if sum(not error for error in self._builds.values()) >= MAX_BUILDS:
            raise Refused(
                409, "Unable to recreate devcontainer", f"{MAX_BUILDS} are being built: wait for one of them."
            )
        self._builds[devcontainer_id] = ""
        argv = [command, "up", "--remove-existing-container", "--workspace-folder", one["workspace_folder"]]
        if config_path := one.get("config_path"):
            argv += ["--config", config_path]
        context.nursery.start_soon(self._build, devcontainer_id, argv)
        return {
            "message": "Devcontainer recreation initiated",
            "detail": f'Recreation process for devcontainer "{name}" has started.',
        }

    async def _build(self, devcontainer_id: str, argv: list[str]) -> None:
        try:
            await run_command(argv, BUILD_SECONDS)
        except ContainerError as error:
            _log.warning("devcontainer %s was not built: %s", devcontainer_id, error)
            self._builds[devcontainer_id] = str(error)
        else:
            del self._builds[devcontainer_id]
        self._listed_at = -FRESH_SECONDS

    async def _containers(self) -> list[dict[str, Any]]:
        async with self._lock:
            if trio.current_time() - self._listed_at >= FRESH_SECONDS:
                try:
                    self._listed = await list_containers()
                except ContainerError as error:
                    raise Refused(403, "Dev Container feature not enabled.", str(error)) from None
                self._listed_at = trio.current_time()
            return self._listed


def _of_manifest(manifest: Manifest | None) -> Iterator[dict[str, Any]]:
    """Those that the template defines."""
    for each in manifest.devcontainers[:MAX_DEFINED] if manifest is not None else ():
        subagent_id = each.subagent_id if each.HasField("subagent_id") else b""
        made = {
            "id": _text_id(each.id),
            "name": each.name,
            "workspace_folder": each.workspace_folder,
            "subagent_id": _text_id(subagent_id) if subagent_id else None,
            "status": "stopped",
            "dirty": False,
        }
        yield {**made, "config_path": each.config_path} if each.config_path else made


def _text_id(raw: bytes) -> str:
    return str(UUID(bytes=raw)) if len(raw) == UUID_BYTES else ""


def _of_container(folder: str, config_path: str | None) -> dict[str, Any]:
    """One that somebody began by hand; its id is the same in each look."""
    made = {
        "id": str(uuid5(NAMESPACE_URL, f"file://{folder}")),
        "name": PurePath(folder).name,
        "workspace_folder": folder,
        "subagent_id": None,
        "status": "stopped",
        "dirty": False,
    }
    return {**made, "config_path": config_path} if config_path else made
