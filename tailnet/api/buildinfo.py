"""What SDKs ask first, before anybody logs in (layer L3): GET /api/v2/buildinfo.

What belongs to a control plane (provisioners, telemetry, push) has its empty value.  No next hop.
"""

from functools import cache
from importlib.metadata import version

from fastapi import APIRouter

from tailnet.api.answers import Body, OmitEmpty
from tailnet.api.guards import ServicesOf
from tailnet.proto.version import CURRENT

router = APIRouter(prefix="/api/v2", tags=["general"])


class BuildInfo(Body):
    """Which server this is.  `version` is semantic, with a leading v."""

    external_url: str = ""
    version: str
    dashboard_url: str
    telemetry: bool = False
    workspace_proxy: bool = False
    agent_api_version: str
    provisioner_api_version: str = ""
    upgrade_message: str = ""
    deployment_id: str = ""
    webpush_public_key: OmitEmpty[str] = ""


@router.get("/buildinfo")
async def buildinfo(services: ServicesOf) -> BuildInfo:
    """Which server this is; for everybody."""
    return BuildInfo(version=f"v{_own_version()}", dashboard_url=services.access_url, agent_api_version=str(CURRENT))


@cache
def _own_version() -> str:
    return version("tailnet-derp")
