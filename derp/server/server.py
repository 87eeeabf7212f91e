"""The relay as a program runs it: listeners, STUN, certificates and pages around one Relay.  Layer L3.

    accept -> door.py -> upgrade.py -> session.py -> relay/ -> the host's flush
How it begins and ends is in life.py; the command line is derp/cli.py.
"""

import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from derp.config import RelayConfig
from derp.config.settings import SETTINGS
from derp.metrics import CONTENT_TYPE, RelayStatistics, metrics_page
from derp.server.debug import debug_pages
from derp.server.door import FrontDoor, Route
from derp.server.drain import drain_clients
from derp.server.encryption import KeptElsewhere
from derp.server.handover import Inherited
from derp.server.life import DOOR_SECONDS, Server
from derp.server.load_page import load_pages
from derp.server.memory import Load, sum_loads
from derp.server.merged import merge
from derp.server.pages import Page, Pages, PlainPages
from derp.server.relay import Relay
from derp.server.statistics import read_statistics
from derp.server.together import PagesTogether
from derp.server.varz import vars_page, varz_page
from derp.server.worker import Worker

if TYPE_CHECKING:
    from derp.server.certificates import CertificateKeeper

_log = logging.getLogger("derp.server")


class RelayServer(Server[RelayConfig]):
    """A relay with its ports.  serve_relay makes and runs one."""

    name = "relay"
    kind = "derp"
    table = SETTINGS

    def __init__(
        self,
        config: RelayConfig,
        *,
        reread: Callable[[], RelayConfig] | None = None,
        inherited: Inherited | None = None,
        mesh_context: ssl.SSLContext | None = None,
        worker: Worker | None = None,
    ) -> None:
        """`mesh_context`: how other relays are trusted; None: as this machine trusts everybody.  `worker`: who we are
        among several processes of one relay; None: this one is all of it."""
        super().__init__(config, config.private_key.public(), reread=reread, inherited=inherited)
        self.reactor.write_seconds = config.tcp_write_timeout_seconds
        self.worker = worker
        is_kept_elsewhere = self.tls is not None and self.tls.config.is_kept_elsewhere
        self.kept_elsewhere = KeptElsewhere(self.tls) if self.tls is not None and is_kept_elsewhere else None
        place = worker.place if worker is not None else None
        self.relay = Relay(config, self.reactor, self.lobby, mesh_context=mesh_context, place=place)
        self.pages = self._make_pages()
        way_in = [self.relay.upgrades.route()] if config.derp_enabled else []
        together = self._pages_together()
        self.door = FrontDoor(self.lobby, [*way_in, *together, self.pages.route()])
        self.plain_door = FrontDoor(self.lobby, [PlainPages(self.pages).route()])

    def _make_pages(self) -> Pages:
        config, started_at, keeper = self.config, time.time(), self._any_keeper()
        numbers = {
            "/metrics": Page("metrics", CONTENT_TYPE, metrics_page(self.statistics)),
            "/debug/vars": Page("derper's names, JSON", "application/json", vars_page(self.statistics, started_at)),
            "/debug/varz": Page("derper's names, Prometheus", CONTENT_TYPE, varz_page(self.statistics, started_at)),
            **load_pages(self.statistics),
        }
        return Pages(
            home=config.home,
            derp_enabled=config.derp_enabled,
            debug_allow=config.debug_allow,
            problem=self.problem,
            pages=debug_pages(self.relay, numbers),
            bootstrap_dns=self.relay.bootstrap.answer,
            challenges=keeper.challenges if keeper is not None else None,
            invited=self.relay.invitations.map_for if self.relay.invitations is not None else None,
            own_names=(config.hostname, config.tls.hostname if config.tls is not None else ""),
        )

    def _any_keeper(self) -> "CertificateKeeper | KeptElsewhere | None":
        return self.keeper or self.kept_elsewhere

    def show_proof(self, digest: bytes | None, challenges: Mapping[str, bytes], failures: int) -> None:
        """The supervisor asks an authority, which will look here, or has asked; for nothing, if our settings, which are
        newer than its, want no certificate of an authority any more."""
        if self.kept_elsewhere is not None:
            self.kept_elsewhere.show(digest, challenges, failures)

    def look_at_certificate(self) -> None:
        """The supervisor has a new certificate, which lies in its files."""
        self.ports.look_at_certificate()

    def count_elsewhere(self) -> int:
        return self.relay.siblings.connection_count if self.relay.siblings is not None else 0

    def problem(self) -> str | None:
        siblings = self.relay.siblings
        return super().problem() or (siblings.problem if siblings is not None else None)

    def _read_standing(self) -> tuple[int, str]:
        problem = self.self_check.problem() if self.self_check is not None else None
        return len(self.reactor.wires), problem or ""

    def _pages_together(self) -> list[Route]:
        siblings = self.relay.siblings
        if siblings is None:
            return []
        return [PagesTogether(self.pages, self.relay, siblings, self._own_statistics).route()]

    def statistics(self) -> RelayStatistics:
        """One reading of everything that is counted, by all workers whose pages are shown."""
        own = self._own_statistics()
        others = [other.reading for other in self.relay.others if other.reading is not None]
        return merge(own, others) if others else own

    def _own_statistics(self) -> RelayStatistics:
        return read_statistics(self.relay, self.lobby, self.ports, self.doors(), self._any_keeper(), self.self_check)

    def open(self) -> None:
        super().open()
        if self.worker is not None and self.config.self_check:
            # A connection to the ports that all workers share might come to another one.
            self._listen(self.own_kind, "127.0.0.1", 0, self.door)

    @property
    def own_kind(self) -> str:
        return self.kind if self.worker is None else "own"

    def stun_places(self) -> Sequence[tuple[str, int]]:
        return [(host, self.config.stun_port) for host in self.config.stun_hosts]

    async def start(self, nursery: trio.Nursery) -> None:
        if self.worker is not None and self.relay.siblings is not None:
            self.relay.siblings.read_standing = self._read_standing
            self.worker.take_links(self.relay.siblings)
            nursery.start_soon(self.worker.run, self, self.relay.siblings)
        await nursery.start(self.relay.run)

    def cannot_hand_over(self) -> str | None:
        if self.worker is None:
            return None
        return f"this is one of several workers, and process {os.getppid()} above them is who hands over"

    def apply(self, changed: Sequence[str]) -> None:
        config, rate = self.config, self.config.rate
        self.reactor.write_seconds = config.tcp_write_timeout_seconds
        self.pages.configure(home=config.home, debug_allow=config.debug_allow)
        self.relay.configure(config)
        if {"--rate-config", "--rate-keys"} & set(changed) and rate.bytes_per_second:
            _log.info("= rate limit: %d bytes/s, burst %d", rate.bytes_per_second, rate.burst_bytes)

    def own_relay(self) -> Relay | None:
        return self.relay if self.config.derp_enabled else None

    def look_at_files(self) -> None:
        """There are none that settings do not name."""

    async def send_away(self) -> None:
        seconds = self.config.drain_seconds
        if not self.is_replaced:
            await drain_clients(self.relay, seconds)
            return
        self.relay.siblings_stay = self.worker is not None
        # The other process is there already, so nobody need wait for it.
        await drain_clients(self.relay, seconds, reconnect_in_seconds=0.0)
        # Who was accepted a moment before is answered here, or sent on as the others were.
        with trio.move_on_after(DOOR_SECONDS):
            while self.lobby.waiting or self.relay.close_clients(self.config.max_connections):  # noqa: ASYNC110
                await trio.sleep(0.01)

    def read_load(self) -> Load:
        return sum_loads(super().read_load(), self.relay.router.pool.read_load())

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
    worker: Worker | None = None,
    *,
    task_status: trio.TaskStatus[RelayServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `drain` of the started RelayServer is done.  Raises ConfigError.

    `reread` gives the settings as their sources say them now, for `reload`.
    """
    server = RelayServer(config, reread=reread, inherited=inherited, worker=worker)
    server.open()
    try:
        await server.run(task_status=task_status)
    finally:
        server.close()
