"""The embedded relay, its key, its region of the DERP map and its pages; other maps' sources; the replicas' key.

Layer L3.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

from derp.errors import ConfigError
from derp.keys import KEY_BYTES, NodePrivate
from derp.map import DERPNode, DERPRegion
from derp.metrics import CONTENT_TYPE, RelayStatistics
from derp.relay.load import LoadReading
from derp.server.debug import WHY_PATH, debug_pages, why_question
from derp.server.handover import Inherited
from derp.server.load_page import load_pages
from derp.server.pages import Page, Query, Question, Reply
from derp.server.ports import Listening
from derp.server.relay import Relay
from derp.server.varz import vars_page, varz_page
from derp.text import host_port
from tailnet.api.pages import OPERATORS_PLACES
from tailnet.config import CoordinatorConfig
from tailnet.services.derp_maps import DerpMaps, StoreMapKeeper
from tailnet.services.map_sources import FileSource, MapSource, UrlSource
from tailnet.services.region_load import RegionLoads
from tailnet.services.why import SlowQuestion, Why
from tailnet.store.store import Store

if TYPE_CHECKING:
    from tailnet.services.replicas import Replicas

OperatorsPage: TypeAlias = Page | Question | SlowQuestion
RELAY_PURPOSE: Final = "relay"
REPLICA_PURPOSE: Final = "replica link"
_NO_STUN: Final = -1
_CLAIM: Final = "store claim"
# Every address is listened on, of both families; this machine may have no IPv6.
_UNSPECIFIED: Final = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}


def open_store(config: CoordinatorConfig, inherited: Inherited | None) -> Store:
    """The store, with the claim on it of a process that we replace.  Blocks; raises StoreError."""
    store = Store.open(config.store)
    claim = inherited.take_file(_CLAIM) if inherited is not None else None
    if claim is not None:
        store.database.dialect.take_claim(claim)
    return store


def claim_of(store: Store) -> Mapping[str, int]:
    """What whoever replaces us takes in `open_store`."""
    claim = store.database.dialect.claim_to_hand_over()
    return {} if claim is None else {_CLAIM: claim}


def relay_key(store: Store) -> NodePrivate:
    """The relay's private key, the same after every restart: by it clients know a relay again.

    Blocks; raises StoreError.
    """
    return NodePrivate(store.keys.lasting_key(RELAY_PURPOSE, datetime.now(UTC), secrets.token_bytes, KEY_BYTES))


def cluster_secret(config: CoordinatorConfig, store: Store, inherited: Inherited | None) -> bytes:
    """What replicas prove to each other to have.  Blocks; raises StoreError, and ConfigError for a store that a server
    uses which this one does not replace, and that no two can share."""
    replaces_another = inherited is not None and inherited.replaces_another
    if not replaces_another and not store.database.dialect.claim():
        raise ConfigError(
            f"store {store.shown}: another server uses it, and replicas cannot share a SQLite: give them a PostgreSQL"
        )
    if config.bus_secret:
        return config.bus_secret
    return store.keys.lasting_key(REPLICA_PURPOSE, datetime.now(UTC), secrets.token_bytes, KEY_BYTES)


def default_access_url(listening: Sequence[Listening]) -> str:
    """How to reach us when the settings do not say: the first socket we listen on, from this machine."""
    for each in listening:
        if each.kind.startswith("tailnet"):
            host = _UNSPECIFIED.get(each.host, each.host)
            scheme = "https" if each.kind.endswith("+tls") else "http"
            return f"{scheme}://{host_port(host, each.port)}"
    return ""


def embedded_region(config: CoordinatorConfig, listening: Sequence[Listening], pin: str = "") -> DERPRegion:
    """The region of our own relay.  Peers put the host and port of their own access URL in its place.

    `pin`: of a certificate that no authority vouches for.
    """
    url = urlsplit(config.access_url or default_access_url(listening))
    is_https = url.scheme == "https"
    stun_ports = [each.port for each in listening if each.kind == "stun"]
    region_id = config.derp_region_id
    port = url.port or (443 if is_https else 80)
    # Where the access URL has another port, a proxy is before us, and by UDP nobody may come through.
    has_quic = is_https and any(each.kind == "derp+quic" and each.port == port for each in listening)
    node = DERPNode(
        name=f"{region_id}b",
        region_id=region_id,
        host_name=url.hostname or "127.0.0.1",
        cert_name=pin,
        derp_port=port,
        stun_port=stun_ports[0] if stun_ports else _NO_STUN,
        force_http=not is_https,
        quic_port=port if has_quic else 0,
    )
    stun_only = tuple(
        DERPNode(name=f"{region_id}stun{at}", region_id=region_id, host_name=host, stun_only=True, stun_port=port)
        for at, (host, port) in enumerate(config.stun_servers)
    )
    return DERPRegion(
        region_id=region_id,
        region_code=config.derp_region_code,
        region_name=config.derp_region_name,
        embedded_relay=True,
        nodes=(*stun_only, node),
    )


def region_from_inside(region: DERPRegion, listening: Sequence[Listening]) -> DERPRegion:
    """The same region as the server's own node reaches it: by a socket of ours, whatever stands before the access URL.

    Its certificate is not looked at: we know whom we dial.
    """
    for each in listening:
        if each.kind.startswith("tailnet"):
            node = DERPNode(
                name=f"{region.region_id}inside",
                region_id=region.region_id,
                host_name=_UNSPECIFIED.get(each.host, each.host),
                derp_port=each.port,
                stun_port=_NO_STUN,
                force_http=not each.kind.endswith("+tls"),
                insecure_for_tests=True,
            )
            return replace(region, nodes=(node,))
    return region


async def open_maps(
    config: CoordinatorConfig, region: DERPRegion | None, store: Store, read_own: Callable[[], LoadReading | None]
) -> tuple[DerpMaps, RegionLoads]:
    """The map service, and what steers clients away from regions that are full, which knows what it did before.

    `region`, `read_own`: of our own relay.
    """
    keeper = StoreMapKeeper(store)
    maps = DerpMaps(map_sources(config), region, scores=config.scores, avoid=config.avoid_regions, keeper=keeper)
    loads = RegionLoads(maps, config.steer_by_load, keeper=keeper, read_own=read_own)
    await loads.recall()
    return maps, loads


def map_sources(config: CoordinatorConfig) -> list[MapSource]:
    """Files and URLs of maps, as the settings name them."""
    files: list[MapSource] = [FileSource(path) for path in config.derp_map]
    return [*files, *(UrlSource(url, config.derp_map_poll_seconds) for url in config.derp_map_url)]


def operators_pages(
    why: Why, relay: Relay | None, read: Callable[[], RelayStatistics], replicas: "Replicas | None"
) -> Mapping[str, OperatorsPage]:
    """What the API shows below /debug/ beside its own, by path."""
    question = why_question(why.answer, brand="tailnet", places=OPERATORS_PLACES)
    answers: dict[str, OperatorsPage] = {WHY_PATH: question}
    if replicas is not None:
        answers |= {WHY_PATH: _why_everywhere(why, question.title, replicas), "/debug/replicas": replicas.page()}
    if relay is None:
        return answers
    started_at = time.time()
    numbers = {
        "/debug/vars": Page("derper's names, JSON", "application/json", vars_page(read, started_at)),
        "/debug/varz": Page("derper's names, Prometheus", CONTENT_TYPE, varz_page(read, started_at)),
        **load_pages(read),
    }
    return debug_pages(relay, numbers, overview="/debug/derp", around=OPERATORS_PLACES) | answers


def _why_everywhere(why: Why, title: str, replicas: "Replicas") -> SlowQuestion:
    """/debug/why of one replica, which asks the others."""
    from tailnet.services.replicas_why import WhyElsewhere

    elsewhere = WhyElsewhere(replicas)
    replicas.shared[elsewhere.topic] = elsewhere

    async def reply(asked: Query) -> Reply:
        lines = await elsewhere.ask({name: values[-1] for name, values in asked.items()})

        def answer(given: Mapping[str, str]) -> str:
            return why.answer(given) + "".join(f"{line}\n" for line in lines)

        return why_question(answer, brand="tailnet", places=OPERATORS_PLACES).reply(asked)

    return SlowQuestion(title, reply)
