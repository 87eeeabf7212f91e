"""What SDKs ask before anybody logs in."""

from importlib.metadata import version

from tests.support.api_world import ACCESS_URL, World


async def test_everybody_may_ask(world: World) -> None:
    async with world.client() as client:
        response = await client.get("/api/v2/buildinfo")
    assert response.status_code == 200
    assert response.json() == {
        "external_url": "",
        "version": f"v{version('tailnet-derp')}",
        "dashboard_url": ACCESS_URL,
        "telemetry": False,
        "workspace_proxy": False,
        "agent_api_version": "2.11",
        "provisioner_api_version": "",
        "upgrade_message": "",
        "deployment_id": "",
    }
