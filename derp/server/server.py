"""The relay as a program runs it: listeners, STUN, certificates and pages around one Relay.  Layer L3.

    accept -> door.py -> upgrade.py -> session.py -> relay/ -> the host's flush
How it begins and ends is in life.py; the command line is derp/cli.py.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from derp.config import RelayConfig, TlsConfig
from derp.config.files import RATE_FIELDS
from derp.config.settings import SETTINGS
from derp.metrics import CONTENT_TYPE, RelayStatistics, metrics_page
from derp.server.debug import debug_pages
from derp.server.door import FrontDoor
from derp.server.drain import drain_clients
from derp.server.handover import Inherited
from derp.server.life import DOOR_SECONDS, Server
from derp.server.lobby import Lobby
from derp.server.pages import Page, Pages, PlainPages
from derp.server.ports import Ports
from derp.server.relay import Relay
from derp.server.statistics import read_statistics
from derp.server.varz import vars_page, varz_page
from derp.transport.tls import TlsServer

if TYPE_CHECKING:
    import ssl

    from derp.server.certificates import CertificateKeeper

_log = logging.getLogger("derp.server")


class RelayServer(Server[RelayConfig]):
    """A relay with its ports.  serve_relay makes and runs one."""

    name = "relay"
    table = SETTINGS

    def __init__(
        self,
        config: RelayConfig,
        *,
        reread: Callable[[], RelayConfig] | None = None,
        inherited: Inherited | None = None,
        mesh_context: "ssl.SSLContext | None" = None,
    ) -> None:
        """`mesh_context`: how other relays are trusted; None: as this machine trusts everybody."""
        super().__init__(config, reread=reread, inherited=inherited)
        self.lobby = Lobby(self.reactor, config)
        self.relay = Relay(config, self.reactor, self.lobby, mesh_context=mesh_context)
        self.tls = self._make_tls(config.tls) if config.tls is not None else None
        self.ports = Ports(self.reactor, self.tls, self.inherited)
        self.listening = self.ports.listening
        self.keeper = self._make_keeper(self.tls) if self.tls is not None else None
        self.pages = self._make_pages()
        self.door = FrontDoor(
            self.lobby, [*([self.relay.upgrades.route()] if config.derp_enabled else []), self.pages.route()]
        )
        self.plain_door = FrontDoor(self.lobby, [PlainPages(self.pages).route()])

    def _make_tls(self, config: TlsConfig) -> TlsServer:
        if config.acme is not None:
            # Imported here: the library behind it is large, and most relays do without.
            from derp.server.autocert import adopt_autocert

            for notice in adopt_autocert(config):
                _log.warning("! %s", notice)
        tls = TlsServer(config, self.relay.public_key, now=time.time())
        for notice in tls.notices:
            _log.warning("! %s", notice)
        return tls

    def _make_keeper(self, tls: TlsServer) -> "CertificateKeeper | None":
        if tls.config.acme is None:
            return None
        from derp.server.certificates import CertificateKeeper

        return CertificateKeeper(tls.config, tls.show_proof, self.ports.look_at_certificate)

    def _make_pages(self) -> Pages:
        config, started_at = self.config, time.time()
        numbers = {
            "/metrics": Page("metrics", CONTENT_TYPE, metrics_page(self.statistics)),
            "/debug/vars": Page("derper's names, JSON", "application/json", vars_page(self.statistics, started_at)),
            "/debug/varz": Page("derper's names, Prometheus", CONTENT_TYPE, varz_page(self.statistics, started_at)),
        }
        return Pages(
            home=config.home,
            derp_enabled=config.derp_enabled,
            debug_allow=config.debug_allow,
            problem=self.problem,
            pages=debug_pages(self.relay, numbers),
            bootstrap_dns=self.relay.bootstrap.answer,
            challenges=self.keeper.challenges if self.keeper is not None else None,
        )

    def statistics(self) -> RelayStatistics:
        """One reading of everything that is counted."""
        reading = read_statistics(self.relay, self.lobby, self.ports, [self.door, self.plain_door])
        return replace(reading, renewal_failures=self.keeper.failures) if self.keeper is not None else reading

    def open_ports(self) -> None:
        config = self.config
        for host, port in config.listen:
            self._open("derp", host, port, self.door)
        if config.http_port is not None and self.tls is not None:
            for host in dict.fromkeys(host for host, _ in config.listen):
                self._open("http", host, config.http_port, self.plain_door, is_plain=True)
        for host in config.stun_hosts:
            self.ports.open_stun(host, config.stun_port, lambda: self.problem() is None)

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

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.relay.run)
        if self.keeper is not None:
            nursery.start_soon(self.keeper.run)

    def apply(self, changed: Sequence[str]) -> None:
        rate = self.config.rate
        self.relay.plane.set_rates(rate, self.config.rate_by_key)
        if rate.client_bytes_per_second:
            _log.info("= rate limit: %d bytes/s, burst %d", rate.client_bytes_per_second, rate.client_burst_bytes)
        elif self.config.rate_config_file is not None:  # meant so, or a key that is misspelt
            _log.warning("! no rate limit: %s has no %s", self.config.rate_config_file, RATE_FIELDS[0])

    def look_at_files(self) -> None:
        if self.keeper is not None:
            self.keeper.retry_now()

    async def send_away(self) -> None:
        seconds = self.config.drain_seconds
        if not self.is_replaced:
            await drain_clients(self.relay, seconds)
            return
        # The other process is there already, so nobody need wait for it.
        await drain_clients(self.relay, seconds, reconnect_in_seconds=0.0)
        # Who was accepted a moment before is answered here, or sent on as the others were.
        with trio.move_on_after(DOOR_SECONDS):
            while self.lobby.waiting or self.relay.close_clients(self.config.max_connections):  # noqa: ASYNC110
                await trio.sleep(0.01)

    def describe(self) -> str:
        router = self.relay.router
        return (
            f"{len(self.reactor.wires)} connections, {len(self.lobby.waiting)} of them new; "
            f"{len(router.clients)} clients, {router.home_clients} at home; {len(self.reactor.blocked)} read too slowly"
        )


async def serve_relay(
    config: RelayConfig,
    reread: Callable[[], RelayConfig] | None = None,
    inherited: Inherited | None = None,
    *,
    task_status: trio.TaskStatus[RelayServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `drain` of the started RelayServer is done.  Raises ConfigError.

    `reread` gives the settings as their sources say them now, for `reload`.
    """
    server = RelayServer(config, reread=reread, inherited=inherited)
    server.open()
    try:
        await server.run(task_status=task_status)
    finally:
        server.close()
