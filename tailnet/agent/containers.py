"""The containers beside an agent, as docker or podman tell of them.  Layer L3.

Their command lines are asked, not their sockets: they know where the engine is, and who may ask.  What they answer is
put into the reference's words for the API.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import trio

from derp.text import error_text, fit_to_show
from tailnet.agent.processes import end_group
from tailnet.errors import TailnetError

ENGINES: Final = ("docker", "podman")
ENGINE_SECONDS: Final = 20.0
# What an engine may answer: 500 containers are some 4 MiB of JSON.
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_CONTAINERS: Final = 500
NO_ENGINE: Final = f"there is no container engine on this machine: none of {', '.join(ENGINES)} is in PATH"
_MAX_COMPLAINT_BYTES: Final = 400  # its end: the beginning is what went well
# As engines allow; a name that began with a dash would be an option.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")
# The user's own shell, if the container has a list of users that says so.
_LOGIN: Final = (
    'shell=$(getent passwd "$(id -un)" 2>/dev/null | cut -d: -f7); '
    '[ -x "$shell" ] || shell=/bin/sh; [ -n "$1" ] && exec "$shell" -c "$1"; exec "$shell" -l'
)


class ContainerError(TailnetError):
    """The engine is not there, or did not do what it was asked for; the text is for whoever asked."""


def find_engine() -> str | None:
    """The path of an engine's command line."""
    return next((path for name in ENGINES if (path := shutil.which(name)) is not None), None)


def shell_in(container: str, user: str, command: str) -> list[str]:
    """What runs a shell of a container on the terminal in hand.  Raises ContainerError."""
    engine = find_engine()
    if engine is None:
        raise ContainerError(NO_ENGINE)
    if not _NAME.fullmatch(container):
        raise ContainerError(f"{fit_to_show(container)!r} is no name of a container")
    if user and not _USER.fullmatch(user):
        raise ContainerError(f"{fit_to_show(user)!r} is no name of a user")
    as_user = ["--user", user] if user else []
    options = ["--interactive", "--tty", "--env", "TERM=xterm-256color", *as_user]
    return [engine, "exec", *options, container, "/bin/sh", "-c", _LOGIN, "sh", command]


async def run_command(argv: Sequence[str], seconds: float = ENGINE_SECONDS) -> bytes:
    """What a program prints.  Raises ContainerError with its last words if it fails, is slow, or prints too much."""
    name = argv[0].rpartition("/")[2]
    with tempfile.TemporaryFile() as complaints, trio.move_on_after(seconds):
        try:
            process = await trio.lowlevel.open_process(
                list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise ContainerError(f"{name} cannot be started: {error_text(error)}") from None
        try:
            answer = await _read_all(process, name)
            status = await process.wait()
        finally:
            if process.returncode is None:
                await end_group(process)
        if status:
            complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _MAX_COMPLAINT_BYTES))
            last = complaints.read().decode(errors="replace").strip()
            raise ContainerError(f"{name}: {fit_to_show(last) or f'it ended with status {status}'}")
        return answer
    raise ContainerError(f"{name} did not answer within {seconds:g} s")


async def _read_all(process: trio.Process, name: str) -> bytes:
    assert process.stdout is not None
    answer = bytearray()
    async with process.stdout:
        async for part in process.stdout:
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise ContainerError(f"{name} answers more than {MAX_ANSWER_BYTES} bytes")
    return bytes(answer)


async def list_containers() -> list[dict[str, Any]]:
    """Those that are there, running or not, as the agent's API shows them.  Raises ContainerError."""
    engine = find_engine()
    if engine is None:
        raise ContainerError(NO_ENGINE)
    ids = (await run_command([engine, "ps", "--all", "--quiet", "--no-trunc"])).decode(errors="replace").split()
    if not ids:
        return []
    answer = await run_command([engine, "inspect", "--type=container", *ids[:MAX_CONTAINERS]])
    try:
        found = json.loads(answer)
        return sorted((_described(each) for each in found), key=lambda one: str(one["name"]))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ContainerError(f"what {engine} says of its containers cannot be read: {error_text(error)}") from None


def _described(inspected: Mapping[str, Any]) -> dict[str, Any]:
    state, config = inspected["State"], inspected["Config"]
    return {
        "created_at": inspected["Created"],
        "id": inspected["Id"],
        "name": inspected["Name"].removeprefix("/"),
        "image": config["Image"],
        "labels": config.get("Labels") or {},
        "running": state["Status"] == "running",
        "ports": list(_ports(inspected.get("NetworkSettings", {}).get("Ports") or {})),
        "status": state["Status"],
        "volumes": {each["Source"]: each["Destination"] for each in inspected.get("Mounts") or ()},
    }


def _ports(published: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """From `{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}`; a port without a list is not published."""
    for name, bindings in sorted(published.items()):
        number, _, network = name.partition("/")
        shown = {"port": int(number), "network": network or "tcp"}
        if not bindings:
            yield shown
        for one in bindings or ():
            host = {"host_ip": one.get("HostIp"), "host_port": int(one.get("HostPort") or 0)}
            yield {**shown, **{key: value for key, value in host.items() if value}}
