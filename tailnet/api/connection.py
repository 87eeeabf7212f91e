"""What a client needs to know before it dials (layer L3): GET .../connection, with and without an agent.

The DERP map is written by derp/map.py, in Go's names and without zero values; the models below say what it holds.
Next hop: services/connection.py.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from fastapi import APIRouter
from pydantic import Field

from tailnet.api.answers import Body, OmitEmpty, OmitNone
from tailnet.api.guards import ReadableAgent, Services, ServicesOf, UserOfAgentRoute
from tailnet.services.connection import describe_connection
from tailnet.services.derp_maps import PublishedMap

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])


class DerpNode(Body):
    """One relay.  What is absent has its zero value."""

    name: str = Field(alias="Name")
    region_id: int = Field(alias="RegionID")
    host_name: str = Field(alias="HostName")
    cert_name: OmitEmpty[str] = Field("", alias="CertName")
    ipv4: OmitEmpty[str] = Field("", alias="IPv4")
    ipv6: OmitEmpty[str] = Field("", alias="IPv6")
    stun_port: OmitEmpty[int] = Field(0, alias="STUNPort")
    stun_only: OmitEmpty[bool] = Field(False, alias="STUNOnly")
    derp_port: OmitEmpty[int] = Field(0, alias="DERPPort")
    insecure_for_tests: OmitEmpty[bool] = Field(False, alias="InsecureForTests")
    force_http: OmitEmpty[bool] = Field(False, alias="ForceHTTP")
    stun_test_ip: OmitEmpty[str] = Field("", alias="STUNTestIP")
    can_port_80: OmitEmpty[bool] = Field(False, alias="CanPort80")
    quic_port: OmitEmpty[int] = Field(0, alias="QUICPort")


class DerpRegion(Body):
    """The relays of one place."""

    embedded_relay: bool = Field(alias="EmbeddedRelay")
    region_id: int = Field(alias="RegionID")
    region_code: str = Field(alias="RegionCode")
    region_name: str = Field(alias="RegionName")
    latitude: OmitEmpty[float] = Field(0.0, alias="Latitude")
    longitude: OmitEmpty[float] = Field(0.0, alias="Longitude")
    avoid: OmitEmpty[bool] = Field(False, alias="Avoid")
    no_measure_no_home: OmitEmpty[bool] = Field(False, alias="NoMeasureNoHome")
    nodes: Sequence[DerpNode] = Field(alias="Nodes")


class DerpHomeParams(Body):
    """How clients choose their home: a factor on the measured latency, by region id."""

    region_score: OmitEmpty[Mapping[str, float]] = Field({}, alias="RegionScore")


class DerpMap(Body):
    """All relays, by region id."""

    home_params: OmitNone[DerpHomeParams] = Field(None, alias="HomeParams")
    regions: Mapping[str, DerpRegion] = Field(alias="Regions")
    omit_default_regions: OmitEmpty[bool] = Field(False, alias="omitDefaultRegions")


class AgentConnectionInfo(Body):
    """What a client needs to know before it dials an agent."""

    derp_map: DerpMap
    derp_force_websockets: bool
    disable_direct_connections: bool
    hostname_suffix: OmitEmpty[str]


@router.get("/connection")
async def connection(services: ServicesOf, user: UserOfAgentRoute) -> AgentConnectionInfo:
    """Connection info for any agent."""
    return _body(services)


@router.get("/{workspaceagent}/connection")
async def connection_of_agent(services: ServicesOf, agent: ReadableAgent) -> AgentConnectionInfo:
    """Connection info for one agent: today the same as for any."""
    return _body(services)


def _body(services: Services) -> AgentConnectionInfo:
    view = describe_connection(services.config, services.derp_maps)
    return AgentConnectionInfo(
        derp_map=derp_map_body(view.derp_map),
        derp_force_websockets=view.derp_force_websockets,
        disable_direct_connections=view.disable_direct_connections,
        hostname_suffix=view.hostname_suffix,
    )


# The map of a large fleet takes a millisecond, every client asks when it starts, and it changes once a day.
@lru_cache(maxsize=2)
def derp_map_body(published: PublishedMap) -> DerpMap:
    """A map as answers have it."""
    return DerpMap.model_validate(published.map.to_json())
