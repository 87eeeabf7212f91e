"""Health is open and terse, numbers are for operators."""

from dataclasses import replace

import pytest

from tailnet import __version__
from tailnet.api.health import health_page
from tailnet.health.codes import RULES, Check, Code
from tailnet.health.readings import DiskReading, Failed, LogReading, MapReading, Reading, Skipped, SourceReading
from tailnet.services.health import Health
from tailnet.store.rows import Role
from tests.support.api_world import LOCAL, STRANGER, World
from tests.support.seeds import NOW, make_id, user_token


async def test_health_is_open(world: World) -> None:
    async with world.client(STRANGER) as client:
        for path in ("/healthz", "/readyz"):
            response = await client.get(path)
            assert (response.status_code, response.text) == (200, "OK\n")
            assert (await client.head(path)).status_code == 200


async def test_not_ready_says_why(world: World) -> None:
    world.reasons += ["the store does not answer", "draining"]
    async with world.client() as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {"message": "Not ready.", "detail": "the store does not answer; draining"}
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/debug/tailnet"])
async def test_closed_to_strangers(world: World, path: str) -> None:
    async with world.client(STRANGER) as client:
        response = await client.get(path)
        assert response.status_code == 403
        assert response.json()["message"] == "Closed to strangers."
        assert (await client.get(path, headers={"X-Forwarded-For": "127.0.0.1"})).status_code == 403
    async with world.client(LOCAL) as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.get(path, headers={"X-Forwarded-For": "127.0.0.1"})).status_code == 403
    async with world.client(STRANGER, user_token("alice")) as client:
        assert (await client.get(path)).status_code == 403
    world.store.callers.update_user(make_id("bob"), NOW, role=Role.ADMIN)
    async with world.client(STRANGER, user_token("bob")) as client:
        # Seen at the latest when the callers in memory are compared again; this one was not in memory.
        assert (await client.get(path)).status_code == 200


async def test_metrics(world: World) -> None:
    async with world.client(LOCAL) as client:
        response = await client.get("/metrics")
    assert response.text == "tailnet_up 1\n"
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


class Looks:
    """Checks whose readings a test chooses; counts runs."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = readings
        self.runs = 0

    def health(self) -> Health:
        async def first() -> Reading:
            self.runs += 1
            return self.readings[0]

        async def look(at: int) -> Reading:
            return self.readings[at]

        rest = {each.check: (lambda at=at: look(at)) for at, each in enumerate(self.readings) if at}
        return Health({self.readings[0].check: first} | rest, lambda: NOW)


FULL, LOST = DiskReading("/var/lib", 1, 1 << 40), LogReading(3)


def with_health(world: World, *readings: Reading) -> tuple[World, Looks]:
    looks = Looks(*readings)
    return replace(world, services=replace(world.services, health=looks.health())), looks


async def test_operators_get_the_report(world: World) -> None:
    world, _ = with_health(world, LOST, Skipped(Check.STUN, "it is off"))
    async with world.client(LOCAL) as client:
        response = await client.get("/health")
    assert response.status_code == 200, "a warning is nothing to be woken for"
    assert response.headers["cache-control"] == "no-store"
    page = response.json()
    assert list(page) == ["state", "version", "measured_at", "seconds", "findings", "checks"]
    assert (page["state"], page["version"]) == ("warning", __version__)
    assert page["findings"] == [
        {
            "code": "log-lost",
            "severity": "warning",
            "check": "log",
            "what": "3 log lines were dropped",
            "advice": RULES[Code.LOG_LOST].advice,
        }
    ]
    assert [(each["check"], each.get("skipped"), each.get("measured")) for each in page["checks"]] == [
        ("stun", "it is off", None),
        ("log", None, {"lost": 3}),
    ]


async def test_an_error_is_a_status_too(world: World) -> None:
    world, _ = with_health(world, FULL)
    async with world.client(LOCAL) as client:
        response = await client.get("/health?format=text")
        assert (await client.head("/health")).status_code == 503
    assert response.status_code == 503
    assert response.headers["content-type"].startswith("text/plain")
    assert response.text.startswith("error: one thing is wrong; measured at ")
    assert (
        f"error: disk-full: /var/lib: 0 of 1,048,576 MiB are free\n    {RULES[Code.DISK_FULL].advice}" in response.text
    )


async def test_strangers_get_the_state_alone_and_cause_nothing(world: World) -> None:
    world, looks = with_health(world, FULL)
    async with world.client(STRANGER) as client:
        response = await client.get("/health")
        assert (response.status_code, response.json()) == (200, {"state": "unknown"})
        hidden = await client.get("/health", headers={"X-Forwarded-For": "127.0.0.1"})
        assert hidden.json() == {"state": "unknown"}
    assert looks.runs == 0
    async with world.client(LOCAL) as client:
        assert (await client.get("/health")).json()["state"] == "error"
    async with world.client(STRANGER) as client:
        response = await client.get("/health")
        assert (response.status_code, response.json()) == (503, {"state": "error"})
        text = await client.get("/health?format=text")
        assert text.text.count("\n") == 1
        assert "disk" not in response.text + text.text
    assert looks.runs == 1


async def test_a_token_opens_it_or_is_refused(world: World) -> None:
    world, _ = with_health(world, LOST)
    async with world.client(STRANGER, user_token("alice")) as client:
        assert (await client.get("/health")).status_code == 403, "no administrator, and told so"
    world.store.callers.update_user(make_id("bob"), NOW, role=Role.ADMIN)
    async with world.client(STRANGER, user_token("bob")) as client:
        assert "findings" in (await client.get("/health")).json()


async def test_what_sources_and_errors_say_is_shown_without_secrets(world: World) -> None:
    source = SourceReading("http://u:hunter2@a.example/map", "answers 500\x1b[31m", False)
    world, _ = with_health(world, MapReading(1, 1, True, [source]), Failed(Check.DISK, "GET /?token=hunter2 failed"))
    page = health_page(await world.services.health.report()).model_dump(mode="json")
    said = "; ".join(each["what"] for each in page["findings"])
    assert "hunter2" not in said
    assert "\x1b" not in said
    assert {each["code"] for each in page["findings"]} == {"map-source-failed", "check-failed"}
