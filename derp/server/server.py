"""The relay as a program runs it: listeners, STUN, clocks, reload and drain around one Relay.  Layer L3.

    accept -> server/door.py -> server/session.py -> relay/ -> the reactor's flush
One nursery; the reactor is one task in it, with everything that has a deadline.  The command line is derp/cli.py.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from derp.config import RelayConfig, TlsConfig, load_rate_config
from derp.config.files import RATE_FIELDS
from derp.errors import ConfigError
from derp.metrics import CONTENT_TYPE, RelayStatistics, metrics_page
from derp.server.admission import Admission
from derp.server.door import FrontDoor
from derp.server.drain import drain_clients
from derp.server.handover import HandoverError, Inherited, hand_over
from derp.server.mesh import Mesh
from derp.server.ports import Ports
from derp.server.relay import Relay
from derp.server.routes import Page, PlainRoutes
from derp.server.statistics import read_statistics
from derp.server.varz import vars_page, varz_page
from derp.transport.notify import notify_manager
from derp.transport.reactor import Reactor
from derp.transport.tls import TlsServer

if TYPE_CHECKING:
    from derp.server.certificates import CertificateKeeper
    from derp.server.verify import Verifier

_log = logging.getLogger("derp.server")

# How soon after descriptors had run out connections are accepted again.
_TICK_SECONDS: Final = 0.5
# How long a process that was replaced waits for requests on connections that it had accepted: a round trip or a few.
_DOOR_SECONDS: Final = 2.0


class RelayServer:
    """A running relay.  serve_relay makes it; it ends when that is cancelled or `drain` returned."""

    def __init__(self, config: RelayConfig, inherited: Inherited | None = None) -> None:
        """`inherited`: the sockets of the process that this one replaces."""
        self.config = config
        self._inherited = inherited or Inherited()
        self.reactor = Reactor()
        self.verifier = _open_verifier(config)
        self.relay = Relay(config, self.reactor, admission=Admission(config, self.verifier))
        self.tls: TlsServer | None = None
        self.keeper: CertificateKeeper | None = None
        if config.tls is not None:
            self.tls = self._make_tls(config.tls)
        self.ports = Ports(
            self.reactor,
            self.tls,
            accept_limit=config.accept_connection_limit,
            accept_burst=config.accept_connection_burst,
            max_connections=config.max_connections,
            count_connections=lambda: len(self.reactor.wires),
            inherited=self._inherited,
        )
        self.listening = self.ports.listening
        self._doors: list[FrontDoor] = []
        self.door = self._front_door(plain=False)
        self.drained = trio.Event()
        self._is_handing_over = False
        self._successor: trio.Process | None = None
        if config.mesh_key is not None and config.mesh_with:
            # A peer may announce as many clients as it may have, twice that for a larger machine than ours.
            max_keys = 2 * config.max_connections
            self.relay.mesh = Mesh(self.relay.plane, config.private_key, config.mesh_key, max_keys=max_keys)
        started_at = time.time()
        self.relay.pages |= {
            "/metrics": Page("metrics", CONTENT_TYPE, metrics_page(self.statistics)),
            "/debug/vars": Page("derper's names, JSON", "application/json", vars_page(self.statistics, started_at)),
            "/debug/varz": Page("derper's names, Prometheus", CONTENT_TYPE, varz_page(self.statistics, started_at)),
        }

    def _make_tls(self, config: TlsConfig) -> TlsServer:
        if config.acme is not None:
            # Imported here: the library behind it is large, and most relays do without.
            from derp.server import autocert, certificates

            for notice in autocert.adopt_autocert(config):
                _log.warning("! %s", notice)
        tls = TlsServer(config, self.relay.public_key, now=time.time())
        for notice in tls.notices:
            _log.warning("! %s", notice)
        if config.acme is not None:
            self.keeper = certificates.CertificateKeeper(
                config, tls.show_proof, lambda: self.ports.look_at_certificate()
            )
            self.relay.routes.challenges = self.keeper.challenges
        return tls

    def statistics(self) -> RelayStatistics:
        """One reading of everything that is counted."""
        reading = read_statistics(self.relay, self.ports, self._doors)
        return replace(reading, renewal_failures=self.keeper.failures) if self.keeper is not None else reading

    def _front_door(self, *, plain: bool) -> FrontDoor:
        relay, config = self.relay, self.config
        door = FrontDoor(
            relay.plane,
            PlainRoutes(relay.routes) if plain else relay.routes,
            trusted_proxies=config.trusted_proxies,
            derp_enabled=config.derp_enabled and not plain,
        )
        self._doors.append(door)
        return door

    def open(self) -> None:
        """Bind every socket and start to serve.  Raises ConfigError; nothing stays open then."""
        config = self.config
        try:
            for host, port in config.listen:
                self._open("derp", host, port, self.door)
            if config.http_port is not None and self.tls is not None:
                for host in dict.fromkeys(host for host, _ in config.listen):
                    self._open("http", host, config.http_port, self._front_door(plain=True), is_plain=True)
            for host in config.stun_hosts:
                self.ports.open_stun(host, config.stun_port, lambda: self.relay.problem() is None)
        except BaseException:
            self.close()
            raise
        self.ports.start()

    def _open(self, kind: str, host: str, port: int, door: FrontDoor, *, is_plain: bool = False) -> None:
        self.ports.open(
            kind,
            host,
            port,
            door,
            is_plain=is_plain,
            user_timeout_seconds=self.config.tcp_user_timeout_seconds,
            keepalive_seconds=self.config.tcp_keepalive_seconds,
        )

    def close(self) -> None:
        """Close the listening sockets; connections stay."""
        self.ports.close()

    async def run(self) -> None:
        """Serve until cancelled or drained."""
        async with trio.open_nursery() as nursery:
            if self.verifier is not None:  # first, as a client in the backlog may be one to be asked about
                await nursery.start(self.verifier.run)
            nursery.start_soon(self.reactor.run)
            nursery.start_soon(self._tick_forever)
            nursery.start_soon(self.relay.bootstrap.refresh_forever)
            if self.relay.mesh is not None:
                nursery.start_soon(self.relay.mesh.run, self.config.mesh_with)
            if self.keeper is not None:
                nursery.start_soon(self.keeper.run)
            self._inherited.finish()
            await self.drained.wait()
            nursery.cancel_scope.cancel()

    async def _tick_forever(self) -> None:
        while True:
            await trio.sleep(_TICK_SECONDS)
            self.ports.look()

    def reload(self) -> None:
        """Look at files again now: certificates and rate limits.  A file with a mistake leaves all as it was."""
        self.ports.look_at_certificate()
        if self.keeper is not None:
            self.keeper.retry_now()
        if self.config.rate_config_file is not None:
            try:
                rate = load_rate_config(self.config.rate_config_file)
            except ConfigError as error:
                _log.error("! %s; the limits of before stay", error)
                return
            self.relay.plane.set_rates(rate, self.config.rate_by_key)
            if rate.client_bytes_per_second:
                _log.info("= rate limit: %d bytes/s, burst %d", rate.client_bytes_per_second, rate.client_burst_bytes)
            else:  # meant so, or a key that is misspelt
                _log.warning("! no rate limit: %s has no %s", self.config.rate_config_file, RATE_FIELDS[0])

    async def drain(self) -> None:
        """Stop accepting, tell every client, close them in order within the deadline; then `run` returns."""
        if self.relay.is_draining:
            return
        self.close()
        await drain_clients(self.relay, self.config.drain_seconds)
        self.drained.set()

    async def hand_over(self, command: Sequence[str]) -> bool:
        """Have a new process of this command serve in our place, and drain; False, and nothing has changed, if it
        does not come to that."""
        if self.relay.is_draining or self._is_handing_over:
            return False
        self._is_handing_over = True
        try:
            self._successor = await hand_over(self.ports.sockets(), command)
        except HandoverError as error:
            _log.error("! nobody to hand over to: %s; this process goes on", error)
            return False
        finally:
            self._is_handing_over = False
        notify_manager(f"MAINPID={self._successor.pid}")
        _log.info("= process %d serves from now on", self._successor.pid)
        self.relay.is_replaced = True
        self.close()
        # It is there already, so nobody need wait for it.
        await drain_clients(self.relay, self.config.drain_seconds, reconnect_in_seconds=0.0)
        # Who was accepted a moment before is answered here, or sent on as the others were.
        with trio.move_on_after(_DOOR_SECONDS):
            while self.relay.plane.greeted or self.relay.close_clients(self.config.max_connections):  # noqa: ASYNC110
                await trio.sleep(0.01)
        self.drained.set()
        return True


def _open_verifier(config: RelayConfig) -> "Verifier | None":
    if not config.asks_others:
        return None
    # Imported here: an HTTP client takes a tenth of a restart to load, for which clients wait.
    from derp.server.verify import open_verifier

    return open_verifier(config)


async def serve_relay(
    config: RelayConfig,
    inherited: Inherited | None = None,
    *,
    task_status: trio.TaskStatus[RelayServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `drain` of the started RelayServer is done.  Raises ConfigError."""
    server = RelayServer(config, inherited)
    server.open()
    try:
        task_status.started(server)
        await server.run()
    finally:
        server.close()
