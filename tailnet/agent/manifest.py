"""What a coordinator tells an agent about itself, read and bounded.  Layer L3.

What is too much is left out and said in the log: an agent that starts without its last script helps more than one that
does not start.  Units of the wire: services/manifest.py makes such a manifest.  Next hop: agent.py.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from derp.text import fit_to_show
from tailnet.errors import TransportError
from tailnet.proto.convert import NANOS
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.types import PEER_ID_BYTES, PeerID

_log = logging.getLogger("tailnet.agent")

T = TypeVar("T")

# A template has a handful of each; each script is a process at the same time as the others.
MAX_SCRIPTS: Final = 128
MAX_METADATA: Final = 256
MAX_CHECKS: Final = 256
MAX_SECRETS: Final = 256
MAX_SCRIPT_BYTES: Final = 1024 * 1024
# Linux takes no longer string in an environment, and a quarter of a stack of 8 MiB for all of it.
MAX_VARIABLE_BYTES: Final = 128 * 1024 - 1
MAX_ENVIRONMENT_BYTES: Final = 1024 * 1024
# What a health check's interval of 0 would be: a request without end.
MIN_CHECK_SECONDS: Final = 1.0
_DAY: Final = 86_400.0
# Both ends take the number of seconds of a template for nanoseconds.  What cannot be meant so is a duration indeed.
_LONGEST_NUMBER: Final = NANOS


@dataclass(frozen=True, slots=True)
class Script:
    """Times in seconds; 0 is no limit.  `id` and `log_source_id`: 16 bytes, or empty where an old server has none."""

    id: bytes
    log_source_id: bytes
    log_path: str
    text: str
    cron: str
    run_on_start: bool
    run_on_stop: bool
    timeout_seconds: float
    name: str


@dataclass(frozen=True, slots=True)
class MetadataScript:
    """Run at an interval; with 0 once."""

    key: str
    text: str
    interval_seconds: float
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class AppCheck:
    """An app is unwell after so many failures in a row."""

    id: bytes
    name: str
    url: str
    interval_seconds: float
    threshold: int


@dataclass(frozen=True, slots=True)
class Secret:
    """What a file is to have."""

    path: str
    value: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    agent_id: PeerID
    name: str
    workspace: str
    owner: str
    directory: str
    motd_path: str
    variables: dict[str, str] = field(repr=False)
    secret_variables: dict[str, str] = field(repr=False)
    scripts: tuple[Script, ...]
    metadata: tuple[MetadataScript, ...]
    checks: tuple[AppCheck, ...]
    secrets: tuple[Secret, ...]
    is_direct: bool
    force_websocket: bool
    message: agent.Manifest = field(repr=False)
    """As it came."""


def read_manifest(message: agent.Manifest) -> Manifest:
    """Raises TransportError if it names no agent."""
    if len(message.agent_id) != PEER_ID_BYTES or not any(message.agent_id):
        raise TransportError("the coordinator's manifest names no agent: is the token an agent's?")
    secrets = _first("secrets", MAX_SECRETS, message.secrets)
    as_variables = {each.env_name: each.value.decode("utf-8", "surrogateescape") for each in secrets if each.env_name}
    return Manifest(
        agent_id=PeerID(message.agent_id),
        name=message.agent_name,
        workspace=message.workspace_name,
        owner=message.owner_username,
        directory=message.directory,
        motd_path=message.motd_path,
        variables=_variables(message.environment_variables),
        secret_variables=_variables(as_variables),
        scripts=_first("scripts", MAX_SCRIPTS, (_script(each) for each in message.scripts if _is_short(each))),
        metadata=_first("metadata scripts", MAX_METADATA, map(_metadata, message.metadata)),
        checks=_first(
            "apps with a health check", MAX_CHECKS, (_check(each) for each in message.apps if _has_check(each))
        ),
        secrets=tuple(Secret(each.file_path, each.value) for each in secrets if each.file_path),
        is_direct=not message.disable_direct_connections,
        force_websocket=message.derp_force_websockets,
        message=message,
    )


def _first(what: str, limit: int, found: Iterable[T]) -> tuple[T, ...]:
    every = tuple(found)
    if len(every) > limit:
        _log.warning("the manifest has %d %s: those after the first %d are left out", len(every), what, limit)
    return every[:limit]


def _variables(given: Mapping[str, str]) -> dict[str, str]:
    """Those that a process can be started with."""
    taken: dict[str, str] = {}
    left = MAX_ENVIRONMENT_BYTES
    for name, value in given.items():
        size = len(name.encode()) + len(value.encode("utf-8", "surrogateescape")) + 2
        if not name or "=" in name or "\0" in name + value:
            reason = "no system takes it"
        elif size > min(MAX_VARIABLE_BYTES, left):
            reason = f"its {size:,} bytes are too many, or all are"
        else:
            taken[name] = value
            left -= size
            continue
        _log.warning("the manifest's variable %s is left out: %s", fit_to_show(name[:100]), reason)
    return taken


def _seconds(duration: Duration) -> float:
    return max(0.0, duration.ToNanoseconds() / NANOS)


def _number(duration: Duration) -> float:
    """A template's number of seconds."""
    nanos = max(0, duration.ToNanoseconds())
    return float(nanos) if nanos < _LONGEST_NUMBER else nanos / NANOS


def _is_short(script: agent.WorkspaceAgentScript) -> bool:
    is_short = len(script.script) <= MAX_SCRIPT_BYTES
    if not is_short:
        shown = fit_to_show(script.display_name[:100])
        _log.warning("script %s is left out: it has more than %d bytes", shown, MAX_SCRIPT_BYTES)
    return is_short


def _script(given: agent.WorkspaceAgentScript) -> Script:
    return Script(
        id=given.id,
        log_source_id=given.log_source_id,
        log_path=given.log_path,
        text=given.script,
        cron=given.cron.strip(),
        run_on_start=given.run_on_start,
        run_on_stop=given.run_on_stop,
        timeout_seconds=_seconds(given.timeout),
        name=fit_to_show(given.display_name[:100]) or "a script",
    )


def _metadata(given: agent.WorkspaceAgentMetadata.Description) -> MetadataScript:
    interval, timeout = _number(given.interval), _number(given.timeout)
    return MetadataScript(given.key, given.script, min(interval, _DAY), min(timeout or interval or _DAY, _DAY))


def _has_check(app: agent.WorkspaceApp) -> bool:
    return bool(app.healthcheck.url) and app.health != agent.WorkspaceApp.DISABLED


def _check(app: Any) -> AppCheck:
    check = app.healthcheck
    interval = min(max(_seconds(check.interval), MIN_CHECK_SECONDS), _DAY)
    return AppCheck(app.id, fit_to_show(app.slug[:100]), check.url, interval, max(1, check.threshold))
