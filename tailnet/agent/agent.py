"""An agent: what it does in which order, from its start to its end.  Layer L3.

    manifest -> node and ports -> start scripts -> ready ... SIGTERM -> stop scripts -> off
Scripts, sessions, logs and the lifecycle go on while the coordinator is away; what belongs to a manifest begins anew
with each connection.  Next hop: scripts.py, ports.py, control.py, tailnet/node/membership.py.
"""

import logging
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import trio

from derp.client.dial import DialOptions
from derp.client.reconnect import STABLE_SECONDS, BackOff
from derp.errors import UpgradeRefused
from derp.text import error_text
from tailnet.agent.apps import check_apps
from tailnet.agent.context import Context
from tailnet.agent.control import SERVICE, Control
from tailnet.agent.counters import Counters
from tailnet.agent.forwarding import Ports, forward_ports
from tailnet.agent.logs import Logs
from tailnet.agent.manifest import Manifest, read_manifest
from tailnet.agent.metadata import Metadata
from tailnet.agent.monitors import monitor
from tailnet.agent.ports import own_services, serve_ports
from tailnet.agent.reports import Reports
from tailnet.agent.scripts import Outcome, Scripts, Stage
from tailnet.agent.secret_files import write_secrets
from tailnet.agent.stats import Stats
from tailnet.client.link import BACK_OFF, first_error, is_refusal
from tailnet.client.rpc import RpcClient, open_rpc_client
from tailnet.errors import DerpError
from tailnet.node.membership import Member
from tailnet.node.membership import open_agent as open_member
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.version import CURRENT, Version

_log = logging.getLogger("tailnet.agent")

DOOR: Final = "/api/v2/workspaceagents/me/rpc?version={version}"
# A connection that is no agent's coming or going: who shows a workspace's state does not see it.
ASKING: Final = "&role=asking"
# Stop scripts save what a user has; whoever stops the workspace waits for them.
STOP_SECONDS: Final = 60.0
# At the end, for what has to be said still.
LAST_SECONDS: Final = 5.0
# What a connection is lost by; anything else is a fault of ours.
_LOST: Final = (DerpError, OSError, trio.TooSlowError)
_START_STATES: Final = {
    Outcome.GOOD: agent.Lifecycle.READY,
    Outcome.FAILED: agent.Lifecycle.START_ERROR,
    Outcome.TIMED_OUT: agent.Lifecycle.START_TIMEOUT,
}
_STOP_STATES: Final = {
    Outcome.GOOD: agent.Lifecycle.OFF,
    Outcome.FAILED: agent.Lifecycle.SHUTDOWN_ERROR,
    Outcome.TIMED_OUT: agent.Lifecycle.SHUTDOWN_TIMEOUT,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one agent."""

    url: str
    token: str = field(repr=False)
    ports: Ports = field(default_factory=Ports)
    """Which ports without a service lead to this machine's."""
    is_direct: bool = True
    allow_agent_forwarding: bool = False
    is_file_transfer_allowed: bool = True
    stop_seconds: float = STOP_SECONDS
    options: DialOptions | None = None
    back_off: BackOff = BACK_OFF


class Agent:
    """Made by `open_agent`."""

    def __init__(self, settings: Settings, nursery: trio.Nursery, scripts_directory: str) -> None:
        self.control = Control()
        self.reports = Reports(self.control)
        self.logs = Logs(self.control)
        self.context = Context(
            nursery,
            settings.url,
            settings.token,
            counters=Counters(self.reports.session),
            allow_agent_forwarding=settings.allow_agent_forwarding,
            is_file_transfer_allowed=settings.is_file_transfer_allowed,
            scripts_directory=scripts_directory,
        )
        self.scripts = Scripts(self.context, self.reports, self.logs)
        self.manifest: Manifest | None = None
        self.member: Member | None = None
        """Its place in the tailnet, while it has one."""
        self.connected = trio.Event()
        """It has come in once."""
        self._settings = settings
        self._nursery = nursery
        self._starting = trio.CancelScope()
        self._services = own_services()

    async def run(self) -> None:
        """Serve until cancelled.  Raises DerpError if the coordinator refuses before the agent has come in once."""
        self._nursery.start_soon(self.logs.run)
        self._nursery.start_soon(self.reports.run)
        failures = 0
        while True:
            began, error = trio.current_time(), None
            try:
                await self._belong()
            except* _LOST as group:
                error = first_error(group)
            assert error is not None  # it never ends otherwise
            if is_refusal(error) and not self.connected.is_set():
                raise error
            failures = 1 if trio.current_time() - began >= STABLE_SECONDS else failures + 1
            delay = self._settings.back_off.delay(failures, random.random())
            text = "no connection to the coordinator (%s); the next try is in %.1f s"
            _log.warning(text, error_text(error), delay)
            await trio.sleep(delay)

    async def stop(self) -> None:
        """Run what is to be run at the end, and say what came of it, within a deadline; then leave the block."""
        self._starting.cancel()
        self.reports.lifecycle(agent.Lifecycle.SHUTTING_DOWN)
        outcome = Outcome.TIMED_OUT
        with trio.move_on_after(self._settings.stop_seconds):
            stopping = [each for each in self.manifest.scripts if each.run_on_stop] if self.manifest else []
            outcome = await self.scripts.run_all(stopping, Stage.STOP)
        self.reports.lifecycle(_STOP_STATES[outcome])
        if self.connected.is_set():
            with trio.move_on_after(LAST_SECONDS) as scope:
                await self.logs.wait_sent()
                await self.reports.wait_sent()
            if scope.cancelled_caught:
                _log.warning("the coordinator was not told all in %g s", LAST_SECONDS)
        served, refused = self.context.counters.served.total(), self.context.counters.refused.total()
        text = "stopped: %d connections were served, %d refused; %d log lines and %d reports are lost"
        _log.info(text, served, refused, self.logs.dropped_lines, self.reports.lost_count)

    # --- its place in the tailnet ---

    async def _belong(self) -> None:
        """Be there for users.  What the coordinator says about the first connection is raised."""
        settings = self._settings
        manifest, self.control.minor = await self._ask()
        options = settings.options
        if manifest.force_websocket:
            options = replace(options or DialOptions(), force_websocket=True)
        joined = trio.Event()
        opening = open_member(
            settings.url,
            settings.token,
            manifest.agent_id,
            is_direct=settings.is_direct and manifest.is_direct,
            options=options,
            back_off=settings.back_off,
            serve=partial(self._serve, joined),
            door=DOOR.format(version=Version(CURRENT.major, self.control.minor)),
            insists=True,
        )
        async with opening as self.member, trio.open_nursery() as nursery:
            joined.set()
            nursery.start_soon(serve_ports, self.member.engine, self.context, self._services)
            nursery.start_soon(forward_ports, self.member.engine, self.context, settings.ports)

    async def _ask(self) -> tuple[Manifest, int]:
        """Who we are, and the newest minor that the coordinator serves."""
        for minor in range(CURRENT.minor, 0, -1):
            try:
                return await self._ask_by(minor), minor
            except UpgradeRefused as error:
                if error.status != HTTPStatus.BAD_REQUEST:
                    raise
        return await self._ask_by(0), 0

    async def _ask_by(self, minor: int) -> Manifest:
        settings, door = self._settings, DOOR.format(version=Version(CURRENT.major, minor)) + ASKING
        async with open_rpc_client(settings.url, door, settings.token, options=settings.options) as rpc:
            return await _read_manifest(rpc)

    async def _serve(self, joined: trio.Event, rpc: RpcClient) -> None:
        """One connection, until it is lost; it may be there before our peers can see us."""
        manifest = await _read_manifest(rpc)
        self._take(manifest)
        self.control.attach(rpc)
        try:
            await self._tell_startup()
            await joined.wait()
            assert self.member is not None
            if not self.connected.is_set():
                self._nursery.start_soon(self._start, manifest)
                self.connected.set()
            _log.info("agent %s of workspace %s is connected", manifest.name, manifest.workspace)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_banners)
                nursery.start_soon(Metadata(manifest.metadata, self.context, self.control).run)
                nursery.start_soon(check_apps, manifest.checks, self.control)
                nursery.start_soon(Stats(self.context, self.member.engine, self.control).run)
                nursery.start_soon(monitor, self.control)
        finally:
            self.control.detach()

    def _take(self, manifest: Manifest) -> None:
        """What sessions and scripts begin with from now on."""
        self.manifest, context = manifest, self.context
        context.manifest = manifest.message
        context.wanted_directory = context.expand(manifest.directory)
        context.motd_path = context.expand(manifest.motd_path)
        names = {
            "CODER_WORKSPACE_NAME": manifest.workspace,
            "CODER_WORKSPACE_AGENT_NAME": manifest.name,
            "CODER_WORKSPACE_OWNER_NAME": manifest.owner,
        }
        context.variables = names | manifest.variables
        context.secret_variables = manifest.secret_variables
        write_secrets(manifest.secrets, context)

    async def _tell_startup(self) -> None:
        # Also where a script has to make it first: editors open it later.
        directory = self.context.wanted_directory or self.context.directory
        startup = agent.Startup(version=f"v{version('tailnet-derp')}", expanded_directory=directory)
        await self.control.report("UpdateStartup", agent.UpdateStartupRequest(startup=startup), agent.Startup)

    async def _read_banners(self) -> None:
        answer = await self.control.report(
            "GetAnnouncementBanners", agent.GetAnnouncementBannersRequest(), agent.GetAnnouncementBannersResponse
        )
        if answer is not None:
            banners = [(each.enabled, each.message) for each in answer.announcement_banners]
        else:  # older than 2.1
            only = await self.control.report("GetServiceBanner", agent.GetServiceBannerRequest(), agent.ServiceBanner)
            banners = [(only.enabled, only.message)] if only is not None else []
        self.context.banners = tuple(message for is_enabled, message in banners if is_enabled and message)

    # --- scripts ---

    async def _start(self, manifest: Manifest) -> None:
        if self._starting.cancel_called:
            return  # it came in when it was told to stop
        with self._starting:
            self.reports.lifecycle(agent.Lifecycle.STARTING)
            first = [each for each in manifest.scripts if each.run_on_start]
            outcome = await self.scripts.run_all(first, Stage.START)
            self.reports.lifecycle(_START_STATES[outcome])
            await self.scripts.run_by_clock(manifest.scripts)


async def _read_manifest(rpc: RpcClient) -> Manifest:
    return read_manifest(await rpc.call(SERVICE + "GetManifest", agent.GetManifestRequest(), agent.Manifest))


@asynccontextmanager
async def open_agent(settings: Settings) -> AsyncIterator[Agent]:
    """An agent that runs in the background of the block; call `stop` before its end."""
    with tempfile.TemporaryDirectory(prefix="tailnet-agent-", ignore_cleanup_errors=True) as directory:
        async with trio.open_nursery() as nursery:
            running = Agent(settings, nursery, directory)
            nursery.start_soon(running.run)
            try:
                yield running
            finally:
                nursery.cancel_scope.cancel()
