"""The app as a whole: closed without tokens, problem details whatever happens, and nothing of it on the public side."""

import logging

import httpx
import pytest

from tailnet.api.administration.app import WithAdministration, create_administration
from tailnet.errors import StoreError
from tailnet.services.administration.service import Administration
from tailnet.store.store import Store
from tests.support.administration import TOKEN, TOKENS, AdminWorld, agent_line, make_admin_world
from tests.support.api_world import make_world


async def test_it_is_there_for_as_long_as_it_has_a_token(store: Store) -> None:
    from tailnet.api.app import create_app

    public, admin = make_world(store), make_admin_world(store)
    app = WithAdministration(create_app(public.services), create_administration(admin.services), admin.services)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://tailnet", headers=headers) as client:
        assert (await client.get("/api/v2/admin/users")).status_code == 200
        assert (await client.get("/api/v2/admin")).json()["code"] == "not_found"
        assert (await client.get("/api/v2/administrators")).json() == {"message": "Route not found."}
        assert (await client.get("/api/v2/buildinfo")).status_code == 200
        admin.services.administrators.tokens = ()
        for path in ("/api/v2/admin/users", "/api/v2/admin/openapi.json", "/api/v2/admin"):
            assert (await client.get(path)).json() == {"message": "Route not found."}
        admin.services.administrators.tokens = TOKENS
        assert (await client.get("/api/v2/admin/users")).status_code == 200


async def test_a_store_that_is_away(world: AdminWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreError("store /srv/tailnet.db: the disk is full")

    monkeypatch.setattr(Administration, "get", fail)
    async with world.client() as client:
        response = await client.get("users/01234567-89ab-cdef-0123-456789abcdef")
    assert (response.status_code, response.json()["code"], response.headers["retry-after"]) == (503, "store_away", "5")


async def test_a_defect_of_ours(
    world: AdminWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(Administration, "page", fail)
    async with world.client() as client:
        with caplog.at_level(logging.ERROR, "tailnet.api"):
            response = await client.get("users")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in response.text
    assert "hunter2" in caplog.text


async def test_places_that_are_none(world: AdminWorld) -> None:
    async with world.client() as client:
        for method, path, status in (
            ("GET", "nothing", 404),
            ("GET", "users/", 404),
            ("DELETE", "users", 405),
            ("GET", "bulk", 405),
        ):
            response = await client.request(method, path)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"


async def test_results_of_streams_are_not_compressed(world: AdminWorld) -> None:
    async with world.client() as client:
        headers = {"Accept-Encoding": "gzip"}
        text = b"".join(agent_line(f"agent {number}") for number in range(50))
        assert "content-encoding" not in (await client.post("bulk", content=text, headers=headers)).headers
        assert (await client.get("export", headers=headers)).headers["content-encoding"] == "gzip"


async def test_the_log_has_who_it_was(world: AdminWorld, caplog: pytest.LogCaptureFixture) -> None:
    async with world.client() as client:
        with caplog.at_level(logging.INFO, "tailnet.api.access"):
            await client.get("users")
    assert "administrator plane" in caplog.text
    assert TOKEN not in caplog.text
