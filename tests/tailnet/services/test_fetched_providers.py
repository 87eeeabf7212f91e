"""Providers that a control plane on loopback has: fetched, joined with ours, exchanged, and kept while it is silent."""

import json
from collections.abc import Callable

import pytest
import trio

from tailnet.auth.call_out import CallOut, CallOutEnd
from tailnet.config.external_auth import providers
from tailnet.services.external_auth import ExternalAuth
from tailnet.services.fetched_providers import FetchedProviders
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tests.support.api_world import ACCESS_URL, SECRETS_KEY
from tests.support.control_plane import SECRET, ControlPlane, http

OURS = {"type": "github", "client_id": "ours", "client_secret": "s"}


def table(name: str, **more: object) -> dict[str, object]:
    given = {"id": name, "type": "gitea", "client_id": "theirs", "client_secret": "hunter2"}
    return given | {"auth_url": f"https://{name}.example/a", "token_url": f"https://{name}.example/t", **more}


class Site:
    """A server of ours that asks a control plane."""

    def __init__(self, store: Store, plane: ControlPlane) -> None:
        self.plane = plane
        self.external = ExternalAuth(store, Sealer([SECRETS_KEY]), ACCESS_URL, providers([OURS]))
        self.call_out = CallOut(plane.url, SECRET)
        self.fetched = FetchedProviders(self.external, self.call_out)

    @property
    def ids(self) -> list[str]:
        return [f"{each.id} {each.client_id}" for each in self.external.providers]

    async def until(self, is_so: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not is_so():
                await trio.lowlevel.checkpoint()


@pytest.fixture
async def site(store: Store, nursery: trio.Nursery) -> Site:
    plane = ControlPlane()
    await nursery.start(plane.serve)
    made = Site(store, plane)
    nursery.start_soon(made.call_out.run)
    return made


async def test_theirs_and_ours_and_what_changed(site: Site, nursery: trio.Nursery) -> None:
    theirs = [table("forge", regex=r"^https://forge\.example/"), table("github", regex="."), table("all", regex="^h")]
    site.plane.external_auth = theirs
    nursery.start_soon(site.fetched.run)
    await site.until(lambda: len(site.external.providers) > 1)
    # Ours go before theirs, by id and by address.
    assert site.ids == ["forge theirs", "all theirs", "github ours"]
    assert site.plane.questions == [{"version": 1, "question": "external_auth"}]
    assert [getattr(site.external.match(f"https://{host}/x"), "id", None) for host in ("github.com", "a.b")] == [
        "github",
        "all",
    ]
    site.external.configure(())
    assert site.ids == ["forge theirs", "github theirs", "all theirs"]
    # What it has now it tells when it says that something changed, and not before.
    site.plane.external_auth = [table("new")]
    site.call_out.forget()
    await site.until(lambda: site.ids == ["new theirs"])
    assert len(site.plane.questions) == 2
    site.plane.external_auth = None
    site.call_out.forget()
    await site.until(lambda: site.ids == [])


async def test_an_answer_ends(site: Site, nursery: trio.Nursery) -> None:
    site.plane.external_auth, site.plane.more = [table("forge")], {"max_age": 0}
    nursery.start_soon(site.fetched.run)
    await site.until(lambda: len(site.plane.questions) > 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"external_auth": {}}, "external_auth: wants a list"),
        ({"external_auth": [table("a"), table("a")]}, "[1].id: 'a' stands there twice"),
        ({"external_auth": [table("a", regex="(a+)+$")]}, "could take for ever"),
        ({"external_auth": [table("a")] * 65}, "at most 64"),
        ({"external_auth": [table("a", token_url="http://a.example/t")]}, "wants https addresses"),
        (
            {"external_auth": [{**table("a", client_secret_file="/etc/shadow"), "client_secret": ""}]},
            "client_secret_file: is for tables of this server",
        ),
        ({}, "external_auth: wants a list"),
    ],
)
async def test_no_answer_leaves_what_was(
    site: Site, nursery: trio.Nursery, wrong: dict[str, object], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.plane.external_auth = [table("forge")]
    nursery.start_soon(site.fetched.run)
    await site.until(lambda: len(site.external.providers) == 2)
    site.plane.respond = lambda question: http("200 OK", json.dumps({"known": True, **wrong}).encode())
    site.call_out.forget()
    await site.until(lambda: site.call_out.ended[CallOutEnd.NONSENSE] == 1)
    assert site.ids == ["forge theirs", "github ours"]
    assert says in caplog.text
    assert "external auth providers stay as they were" in caplog.text
    assert "hunter2" not in caplog.text
