"""Containers and devcontainers as an agent's HTTP API shows them, followed and built anew.  Layer L3.

A devcontainer is a container that the devcontainers' own command line has marked.  Building one is that command line's
work, and goes on when the request is answered.  Next hop: containers.py.
"""

import logging
import shutil
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import trio

from tailnet.agent.containers import ContainerError, list_containers, run_command
from tailnet.agent.context import Context
from tailnet.refusals import Refused

_log = logging.getLogger("tailnet.agent")

# The engine's command line is asked once for all who ask within this time.
FRESH_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 5.0
# Images are fetched and compiled meanwhile.
BUILD_SECONDS: Final = 3600.0
MAX_BUILDS: Final = 4
_FOLDER_LABEL: Final = "devcontainer.local_folder"
_CONFIG_LABEL: Final = "devcontainer.config_file"
_NO_CLI: Final = "`devcontainer` is not in PATH: npm install -g @devcontainers/cli"


@dataclass(slots=True)
class _Build:
    """One that runs, or that failed."""

    error: str = ""


class Devcontainers:
    """Those of one agent."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._listed: list[dict[str, Any]] = []
        self._listed_at = -FRESH_SECONDS
        self._builds: dict[str, _Build] = {}

    async def describe(self) -> dict[str, Any]:
        """All of them.  Raises Refused where there is no engine."""
        containers = await self._containers()
        found: dict[str, dict[str, Any]] = {}
        for one in containers:
            described = _described(one)
            # Of several of one folder the one that runs; the others are what is left of earlier builds.
            if described is not None and (described["id"] not in found or one["running"]):
                found[described["id"]] = described
        for build_id, build in self._builds.items():
            if build_id in found:
                found[build_id]["status"] = "error" if build.error else "starting"
                if build.error:
                    found[build_id]["error"] = build.error
        devcontainers = sorted(found.values(), key=lambda each: (each["name"], each["id"]))
        return {"devcontainers": devcontainers, "containers": containers}

    async def watch(self) -> AsyncGenerator[dict[str, Any], None]:
        """What there is, and again whenever that changes.  Raises Refused when the engine is gone."""
        before = None
        while True:
            now = await self.describe()
            if now != before:
                yield now
                before = now
            await trio.sleep(WATCH_SECONDS)

    async def recreate(self, devcontainer_id: str, context: Context) -> dict[str, Any]:
        """Begin to build one anew.  Raises Refused."""
        known = {each["id"]: each for each in (await self.describe())["devcontainers"]}
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
        if sum(not build.error for build in self._builds.values()) >= MAX_BUILDS:
            raise Refused(
                409, "Unable to recreate devcontainer", f"{MAX_BUILDS} are being built: wait for one of them."
            )
        build = self._builds[devcontainer_id] = _Build()
        argv = [command, "up", "--remove-existing-container", "--workspace-folder", one["workspace_folder"]]
        if config_path := one.get("config_path"):
            argv += ["--config", config_path]
        context.nursery.start_soon(self._build, devcontainer_id, build, argv)
        return {
            "message": "Devcontainer recreation initiated",
            "detail": f'Recreation process for devcontainer "{name}" has started.',
        }

    async def _build(self, devcontainer_id: str, build: _Build, argv: list[str]) -> None:
        try:
            await run_command(argv, BUILD_SECONDS)
        except ContainerError as error:
            _log.warning("devcontainer %s was not built: %s", devcontainer_id, error)
            build.error = str(error)
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


def _described(container: Mapping[str, Any]) -> dict[str, Any] | None:
    """The devcontainer that a container is, if it is one."""
    labels = container["labels"]
    folder, config_path = labels.get(_FOLDER_LABEL), labels.get(_CONFIG_LABEL)
    if not folder:
        return None
    described = {
        "id": str(_id_of(folder)),
        "name": PurePath(folder).name,
        "workspace_folder": folder,
        "subagent_id": None,
        "status": "running" if container["running"] else "stopped",
        "dirty": False,
        "container": container,
    }
    return {**described, "config_path": config_path} if config_path else described


def _id_of(folder: str) -> UUID:
    """The same in each look: nobody else gives one."""
    return uuid5(NAMESPACE_URL, f"file://{folder}")
