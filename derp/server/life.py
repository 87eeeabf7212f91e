"""The life of a server's process: open, run, reload, drain, hand over; what systemd hears of it, and what signals mean.
Layer L3.

The relay (server.py) and the coordinator are Servers, and both commands run theirs by `live`.  Next hop: ports.py for
the sockets, handover.py for who takes them over, transport/notify.py for systemd.
"""

import gc
import logging
import os
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

import trio

from derp.config import ServerConfig, compare
from derp.config.setting import Table
from derp.errors import ConfigError, DerpError
from derp.keys import NodePublic
from derp.log import set_level
from derp.server.door import FrontDoor
from derp.server.drain import neighbours_moved
from derp.server.encryption import open_keeper, open_tls
from derp.server.handover import HandoverError, Inherited, hand_over
from derp.server.lobby import Lobby
from derp.server.memory import Load, give_back_forever
from derp.server.moving import KIND, move_clients, open_channel, receive_clients
from derp.server.ports import Ports
from derp.server.relay import Relay
from derp.server.selfcheck import SelfCheck
from derp.server.succession import Ends, Succession, open_pairs
from derp.text import error_text
from derp.transport.notify import notify_manager
from derp.transport.platform import raise_open_files
from derp.transport.reactor import Reactor
from derp.transport.stream import reason_of

if TYPE_CHECKING:
    from derp.server.quic import QuicPorts

_log = logging.getLogger("derp.server")

# How long a process that was replaced waits for requests on connections that it had accepted: a round trip or a few.
DOOR_SECONDS: Final = 2.0
# How long a process waits for the one that it replaces, and for the relays of its region, before it serves anyway.
_JOIN_SECONDS: Final = 5.0
# A server with 100,000 clients holds a million objects that live for hours.  Python's collector starts every 700 new
# objects; the packet path makes none that need it, but logins would pay for looking through their elders again and
# again.  Cycles are rare here (exceptions, mostly), so it may wait for more of them.
_GC_THRESHOLDS: Final = (50_000, 20, 50)
# What each signal asks for.
SIGNALS: Final = {
    signal.SIGTERM: "drain and end; the second one ends at once",
    signal.SIGINT: "the same",
    signal.SIGHUP: "read settings and files again",
    signal.SIGUSR1: "tell the log how it stands",
    signal.SIGUSR2: "have a new process take over, then drain and end",
}


Config = TypeVar("Config", bound=ServerConfig)


class Server(ABC, Generic[Config]):
    """One server on one reactor, with its settings.

    Call `open`, then `run`; while it runs, `reload` as often as wanted, and once `drain` or `hand_over`, after which
    `run` returns.  Who cancels `run` cuts the clients off.  Whoever called `open` calls `close` in the end.
    """

    name: str
    """What people call it, for sentences."""
    kind: str
    """What its listeners are called."""
    table: Table
    """All its settings."""
    door: FrontDoor
    plain_door: FrontDoor
    """For plain HTTP beside TLS.  The subclass's constructor makes both doors."""

    def __init__(
        self,
        config: Config,
        public_key: NodePublic,
        *,
        reread: Callable[[], Config] | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        """`reread` gives the settings as their sources say them now, and may raise ConfigError; `inherited`: sockets
        that this process was given."""
        self.config = config
        self.reactor = Reactor()
        self.lobby = Lobby(self.reactor, config, count_elsewhere=self.count_elsewhere)
        self.inherited = inherited or Inherited()
        self.tls = open_tls(config.tls, public_key)
        self.ports = Ports(self.reactor, self.tls, self.inherited)
        self.listening = self.ports.listening
        self.keeper = open_keeper(self.tls, self.ports.look_at_certificate)
        self.self_check: SelfCheck | None = None
        self.is_draining = False
        self.is_replaced = False
        """Another process serves in our place: who asks how we are asks about that one."""
        self.successor: trio.Process | None = None
        self.drained = trio.Event()
        self._checking = trio.CancelScope()
        self._reread = reread
        self._handing_over: trio.CancelScope | None = None
        self._channel: socket.socket | None = None  # by which clients go to the successor

    # --- what each server does in its own way

    @abstractmethod
    async def start(self, nursery: trio.Nursery) -> None:
        """Start the server's tasks; returns when clients may come."""

    @abstractmethod
    def apply(self, changed: Sequence[str]) -> None:
        """Take from `config` what changed in it, by the flags of its settings; they are those that can be applied."""

    @abstractmethod
    def look_at_files(self) -> None:
        """Read files and addresses again that settings name, beside certificates, which are looked at anyway."""

    @abstractmethod
    async def send_away(self) -> None:
        """Tell the clients and close their connections, within the deadline that the settings give."""

    @abstractmethod
    def describe(self) -> str:
        """How it stands, in a line for the log."""

    @abstractmethod
    def stun_places(self) -> Sequence[tuple[str, int]]:
        """Hosts and ports where STUN is answered."""

    async def give_notice(self) -> None:
        """While ports are still open: whoever asks is told that this server is not ready, and newcomers come in."""

    @property
    def own_kind(self) -> str:
        """The listeners through which this server checks itself."""
        return self.kind

    def own_relay(self) -> Relay | None:
        """The relay that clients reach through this server's ports; None without one."""
        return None

    def doors(self) -> list[FrontDoor]:
        """All that lead in, for what they count."""
        quic = self.ports.quic
        return [self.door, self.plain_door, *([quic.door] if quic is not None else [])]

    def count_elsewhere(self) -> int:
        """Connections that left the reactor and are still ours."""
        return 0

    def read_load(self) -> Load:
        """What memory grows with, connections and what is held for them: now, and the most since the last call."""
        now, most = self.lobby.connection_count, self.lobby.most_connections
        self.lobby.most_connections = now
        return now, most

    def cannot_hand_over(self) -> str | None:
        """Why no other process can go on where this one stops; None if one can."""
        return None

    def files_to_hand_over(self) -> Mapping[str, int]:
        """Descriptors that a successor gets beside the sockets, for its `Inherited.take_file`."""
        return {}

    # --- what all have in common

    def problem(self) -> str | None:
        """Why this server should get no new clients; None when it is well."""
        if self.is_draining:
            return None if self.is_replaced else f"draining: this {self.name} is about to stop"
        return self.self_check.problem() if self.self_check is not None else None

    def open(self) -> None:
        """Bind every socket.  Raises ConfigError; nothing stays open then."""
        config = self.config
        if config.quic:
            self.ports.quic = self._make_quic()
        try:
            for host, port in config.listen:
                self._listen(self.kind, host, port, self.door)
                if self.ports.quic is not None:
                    self.ports.open_quic(host)
            if config.http_port is not None and self.tls is not None:
                for host in dict.fromkeys(host for host, _ in config.listen):
                    self._listen("http", host, config.http_port, self.plain_door)
            for host, port in self.stun_places():
                self.ports.open_stun(host, port, lambda: self.problem() is None, may_move=self.config.stun_may_move)
        except BaseException:
            self.close()
            raise

    def _make_quic(self) -> "QuicPorts":
        relay = self.own_relay()
        if self.tls is None or relay is None:
            what = "a certificate, as TLS does" if self.tls is None else "the relay, which is off"
            raise ConfigError(f"--quic needs {what}")
        try:
            # Imported here: the library behind it takes a tenth of a second, and is an extra.
            from derp.server.quic import QuicPorts
        except ImportError as error:
            raise ConfigError(f"--quic: {error_text(error)}; install tailnet-derp[quic]") from None
        return QuicPorts(
            self.reactor,
            self.tls,
            self.lobby,
            relay.upgrades,
            secret=relay.config.private_key.raw,
            replaces_another=self.inherited.replaces_another,
        )

    def _listen(self, kind: str, host: str, port: int, door: FrontDoor) -> None:
        self.ports.open(
            kind,
            host,
            port,
            door,
            is_plain=door is self.plain_door,
            user_timeout_seconds=self.config.tcp_user_timeout_seconds,
            keepalive_seconds=self.config.tcp_keepalive_seconds,
        )

    def close(self) -> None:
        """Close the listening sockets; connections stay."""
        self.ports.close(is_replaced=self.is_replaced)

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained, handed over or cancelled.  Started when clients may come."""
        async with trio.open_nursery() as nursery:
            await self.start(nursery)
            if self.keeper is not None:
                nursery.start_soon(self.keeper.run)
            nursery.start_soon(self.reactor.run)
            nursery.start_soon(give_back_forever, self.read_load)
            await self._join_predecessor()
            self.ports.start()
            if self.config.self_check:
                nursery.start_soon(self._check_itself)
            relay, channel = self.own_relay(), self.inherited.take(KIND)
            if relay is not None and channel is not None:
                keeper = self.tls.records if self.tls is not None else None
                receive = partial(receive_clients, predecessor=relay.other_process())
                nursery.start_soon(receive, relay.sessions, keeper, channel)
            self.inherited.finish()
            task_status.started(self)
            await self.drained.wait()
            nursery.cancel_scope.cancel()

    async def _join_predecessor(self) -> None:
        """Mesh with the process that we replace, and with the other relays, so that whoever comes here reaches all."""
        relay = self.own_relay()
        ends = Ends.inherited(self.inherited) if relay is not None else None
        if relay is None or ends is None:
            return
        relay.succession = Succession(relay.sessions, ends, 2 * self.config.max_connections)
        with trio.move_on_after(_JOIN_SECONDS):
            await self._join(relay.succession)
            while not relay.is_meshed():  # noqa: ASYNC110  # a round trip or a few
                await trio.sleep(0.01)

    async def _check_itself(self) -> None:
        relay = self.own_relay()
        sessions = relay.sessions if relay is not None else None
        self.self_check = SelfCheck(self.ports, self.own_kind, sessions, hostname=self.config.hostname)
        with self._checking:
            await self.self_check.run()

    def reload(self) -> None:
        """Read settings and files again now, apply what can be applied, and name what waits for a restart."""
        notify_manager("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        waiting = ", ".join(self._read_settings())
        self.look_at_files()
        self.ports.look_at_certificate()
        if self.keeper is not None:
            self.keeper.retry_now()
        if waiting:
            _log.warning("! changed, but only from the next start on: %s", waiting)
        notify_manager("READY=1", f"STATUS={'waits for a restart: ' if waiting else ''}{waiting}")

    def _read_settings(self) -> Sequence[str]:
        """Apply what settings say now as far as possible, and return what waits.  A mistake changes nothing."""
        if self._reread is None:
            return ()
        try:
            changes = compare(self.table, self.config, self._reread())
        except ConfigError as error:
            _log.error("! the settings stay as they were: %s", error)
            return ()
        self.config = changes.config
        for notice in changes.notices:
            _log.warning("! %s", notice)
        if changes.applied:
            _log.info("= changed: %s", ", ".join(changes.applied))
            if "--log-level" in changes.applied:
                set_level(self.config.log_level)
            self.lobby.configure(self.config)
            self.apply(changes.applied)
        return changes.waiting

    async def drain(self) -> None:
        """Stop accepting, send the clients away within the deadline; then `run` returns, and so does this."""
        if self._handing_over is not None:  # two servers instead of none is not what was asked for
            self._handing_over.cancel()
        if not self.is_draining:
            notify_manager("STOPPING=1")
            await self._leave()
        await self.drained.wait()

    async def hand_over(self, command: Sequence[str]) -> bool:
        """Have a new process of this command serve in our place, and drain; False, and nothing has changed, if it
        does not come to that."""
        if self.is_draining or self._handing_over is not None:
            return False
        obstacle = self.cannot_hand_over()
        if obstacle is not None:
            _log.error("! cannot hand over: %s; this process goes on", obstacle)
            return False
        with trio.CancelScope() as self._handing_over:
            try:
                self.successor = await self._start_successor(command)
            except HandoverError as error:
                _log.error("! nobody to hand over to: %s; this process goes on", error)
        self._handing_over = None
        if self.successor is None:
            return False
        notify_manager(f"MAINPID={self.successor.pid}")
        _log.info("= process %d serves from now on", self.successor.pid)
        await self.leave_to_others()
        return True

    async def leave_to_others(self) -> None:
        """Drain; those who serve in our place do so already."""
        self.is_replaced = True
        await self._leave()

    def take_channel(self, channel: socket.socket) -> None:
        """By which clients go to the process that is to take our place."""
        self._channel = channel

    def share_sockets(self, *, is_shared: bool) -> None:
        """Whether another process serves on our sockets too from now on, for as long as a handover takes."""
        if self.ports.quic is not None:
            self.ports.quic.share_sockets(is_shared=is_shared)

    async def _start_successor(self, command: Sequence[str]) -> trio.Process:
        self.share_sockets(is_shared=True)
        relay = self.own_relay()
        if relay is None:
            return await hand_over(self.ports.sockets(), command, files=self.files_to_hand_over())
        ours, theirs = open_pairs()
        channel, for_clients = open_channel()
        between = [*theirs.handed(), *for_clients]
        relay.succession = Succession(relay.sessions, ours, 2 * self.config.max_connections)
        failure: HandoverError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._join, relay.succession)
            try:
                sockets = [*between, *self.ports.sockets()]
                successor = await hand_over(sockets, command, files=self.files_to_hand_over())
            except HandoverError as error:
                failure = error
                nursery.cancel_scope.cancel()
            else:
                nursery.cancel_scope.deadline = trio.current_time() + _JOIN_SECONDS
            finally:
                for one in between:
                    one.sock.close()
        if failure is not None:
            relay.succession = None
            if channel is not None:
                channel.close()
            raise failure
        if channel is not None:
            self.take_channel(channel)
        return successor

    async def _join(self, succession: Succession) -> None:
        try:
            await succession.join()
        except (trio.BrokenResourceError, DerpError) as error:  # a version that does not know of it, for example
            _log.warning("! packets between the two processes are lost: %s", reason_of(error))

    async def _leave(self) -> None:
        self.is_draining = True
        self._checking.cancel()
        await self.give_notice()
        self.close()
        relay = self.own_relay()
        if relay is not None and self._channel is not None and self.is_replaced:
            is_meshed = relay.other_process() is not None
            if is_meshed:
                relay.tell_neighbours()
                await neighbours_moved(relay)
            await move_clients(relay.sessions, self._channel, one_by_one=is_meshed)
        await self.send_away()
        if relay is not None:
            await relay.leave_mesh()
        self.drained.set()


# --- the process

Started = TypeVar("Started", bound=Server[Any])


def prepare_process() -> None:
    """Take all open files that the administrator allows, not the 1,024 that shells start with; collect rarely."""
    raise_open_files()
    gc.set_threshold(*_GC_THRESHOLDS)


async def live(serve: Callable[..., Awaitable[object]], started: Callable[[Started], None]) -> None:
    """Run a server as signals ask, until it has drained.

    `serve(inherited, task_status=...)` makes, opens and runs it; `started` tells people what is served.
    """
    # Signals first: one that arrives while sockets are being bound must not kill us half-way.
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            server: Started = await nursery.start(serve, Inherited.from_environment(os.environ))
            # Modules and settings live as long as we do; the collector need not look at them ever again.
            gc.collect()
            gc.freeze()
            started(server)
            notify_manager("READY=1")
            await obey(signals, server)
            nursery.cancel_scope.cancel()


async def obey(signals: AsyncIterator[int], server: Server[Any]) -> None:
    """Do what signals ask, by the table above, until the server has drained or has to end at once."""
    async with trio.open_nursery() as nursery:

        async def end_when_drained() -> None:
            await server.drained.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_when_drained)
        is_draining = False
        async for number in signals:
            received = signal.Signals(number)
            match received:
                case signal.SIGTERM | signal.SIGINT if is_draining:
                    _log.warning("! second %s: leaving at once", received.name)
                    nursery.cancel_scope.cancel()
                case signal.SIGTERM | signal.SIGINT:
                    _log.info("= %s: draining", received.name)
                    is_draining = True
                    nursery.start_soon(server.drain)
                case signal.SIGHUP:
                    _log.info("= SIGHUP: reading settings and files again")
                    server.reload()
                case signal.SIGUSR1:
                    _log.info("= SIGUSR1: %s", server.describe())
                case signal.SIGUSR2:
                    _log.info("= SIGUSR2: handing over to a new process")
                    # As this process was called, so that what was installed meanwhile is what starts.
                    nursery.start_soon(server.hand_over, [sys.executable, *sys.orig_argv[1:]])
