"""Who comes in at which door, and the exact refusal of everybody else, in the order that SDKs rely on."""

import json
from collections.abc import Callable

import pytest

from tailnet.api.rpc_admission import Accepted, PeerKind, RefusedPeer, RpcAdmission
from tailnet.coordinator.resume import ResumeKey, ResumeTokens, audience
from tailnet.proto.version import Version
from tailnet.refusals import NO_SUCH_AGENT, SIGNED_OUT
from tests.support.api_world import ACCESS_URL, World
from tests.support.seeds import agent_token, make_id, peer_id, user_token

UPGRADE = {"connection": "keep-alive, Upgrade", "upgrade": "websocket", "host": "tailnet.example.com"}
NOW = 1_800_000_000.0
FRESH = peer_id("fresh")
KEY = ResumeKey("k1", b"s" * 64)
TOKENS = ResumeTokens(KEY)
OWN = "/api/v2/workspaceagents/me"
MAIN = f"/api/v2/workspaceagents/{peer_id('main')}/coordinate"
BOBS = f"/api/v2/workspaceagents/{peer_id('web')}/coordinate"
MANY = "/api/v2/tailnet"


@pytest.fixture
def admission(world: World) -> RpcAdmission:
    return make(world)


def make(
    world: World, *, browser_only: bool = False, tokens: Callable[[], ResumeTokens] = lambda: TOKENS
) -> RpcAdmission:
    return RpcAdmission(
        world.services.callers,
        tokens,
        access_url=ACCESS_URL,
        browser_only=browser_only,
        current=Version(2, 4),
        wall_seconds=lambda: NOW,
        new_peer_id=lambda: FRESH,
    )


async def accepted(admission: RpcAdmission, target: str, token: str) -> Accepted:
    verdict = await admission.judge("GET", target, UPGRADE | {"coder-session-token": token})
    assert isinstance(verdict, Accepted), verdict
    return verdict


async def refused(
    admission: RpcAdmission, target: str, token: str = "", *, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, object]]:
    given = UPGRADE | (headers or {}) | ({"coder-session-token": token} if token else {})
    verdict = await admission.judge(method, target, given)
    assert isinstance(verdict, RefusedPeer), verdict
    assert token not in verdict.why or not token
    body = json.loads(verdict.body)
    assert isinstance(body, dict)
    return verdict.status, body


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (f"{OWN}/rpc", True),
        (f"{OWN}/rpc?version=2.4", True),
        (f"{OWN}/coordinate", True),
        (MAIN, True),
        ("/api/v2/workspaceagents/nonsense/coordinate", True),  # to be refused by us, not by the app
        (MANY, True),
        (f"{MANY}?version=2.3", True),
        (f"{OWN}/rpc/", False),
        (f"{OWN}/metadata", False),
        ("/api/v2/workspaceagents/a/b/coordinate", False),
        ("/api/v2/workspaceagents/connection", False),
        ("/api/v2/derp-map", False),
        ("/api/v2/tailnets", False),
        ("/x?/api/v2/tailnet", False),
        ("/derp", False),
    ],
)
def test_which_requests_are_ours(admission: RpcAdmission, target: str, wanted: bool) -> None:
    assert admission.wants(target) is wanted


# Agents.


@pytest.mark.parametrize(
    ("query", "version", "drives"),
    [
        ("", (2, 0), True),
        ("?version=2.4", (2, 4), True),
        ("?version=2.4&role=agent", (2, 4), True),
        ("?version=2.4&role=", (2, 4), True),
        ("?version=&role=probe", (2, 0), False),
    ],
)
async def test_an_agent(admission: RpcAdmission, query: str, version: tuple[int, int], drives: bool) -> None:
    verdict = await accepted(admission, f"{OWN}/rpc{query}", agent_token("main"))
    assert (verdict.kind, verdict.peer_id, verdict.version) == (PeerKind.AGENT, peer_id("main"), version)
    assert verdict.agent is not None
    assert (verdict.agent.workspace_name, verdict.user, verdict.drives_status) == ("dev", None, drives)


async def test_an_old_agent(admission: RpcAdmission) -> None:
    verdict = await accepted(admission, f"{OWN}/coordinate", agent_token("main"))
    assert (verdict.kind, verdict.peer_id, verdict.version) == (PeerKind.LEGACY_AGENT, peer_id("main"), None)
    assert verdict.drives_status


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", 'Cookie "coder_session_token" must be provided.'),
        ("abc", "Workspace agent token invalid."),
        (str(make_id("x")), "Workspace agent not authorized."),
        (user_token("alice"), "Workspace agent token invalid."),
    ],
)
@pytest.mark.parametrize("path", ["rpc", "coordinate"])
async def test_agents_that_are_turned_away(admission: RpcAdmission, path: str, token: str, message: str) -> None:
    status, body = await refused(admission, f"{OWN}/{path}", token)
    assert (status, body["message"]) == (401, message)


# Clients.


async def test_a_client_of_one_agent(admission: RpcAdmission) -> None:
    verdict = await accepted(admission, f"{MAIN}?version=2.0", user_token("alice"))
    assert (verdict.kind, verdict.peer_id, verdict.version) == (PeerKind.CLIENT, FRESH, (2, 0))
    assert verdict.agent is not None
    assert verdict.user is not None
    assert (verdict.agent.id, verdict.user.username) == (peer_id("main"), "alice")
    assert not verdict.resumed
    assert not verdict.drives_status


@pytest.mark.parametrize("query", ["", "?version=", "?resume_token=forged"])
async def test_a_client_without_a_version_is_an_old_one(admission: RpcAdmission, query: str) -> None:
    verdict = await accepted(admission, MAIN + query, user_token("alice"))
    assert (verdict.kind, verdict.peer_id, verdict.version) == (PeerKind.LEGACY_CLIENT, FRESH, None)
    assert verdict.agent is not None


async def test_a_client_of_many_agents(admission: RpcAdmission) -> None:
    verdict = await accepted(admission, MANY, user_token("bob"))
    assert (verdict.kind, verdict.peer_id, verdict.version) == (PeerKind.CLIENT_OF_MANY, FRESH, (2, 0))
    assert verdict.agent is None
    assert verdict.user is not None
    assert verdict.user.username == "bob"


@pytest.mark.parametrize("token", ["", "nonsense", user_token("carol"), agent_token("main")])
async def test_unusable_keys_have_one_answer_on_agent_routes(admission: RpcAdmission, token: str) -> None:
    status, body = await refused(admission, MAIN, token)
    assert status == 401
    assert body == {"message": "API key or external proxy authentication required, but none provided"}


@pytest.mark.parametrize(
    ("token", "detail"),
    [
        ("", 'Cookie "coder_session_token" or query parameter must be provided.'),
        (user_token("carol"), "API key is invalid."),
        (user_token("alice")[:-1] + "z", "API key secret is invalid."),
    ],
)
async def test_unusable_keys_have_their_reason_elsewhere(admission: RpcAdmission, token: str, detail: str) -> None:
    assert await refused(admission, MANY, token) == (401, {"message": SIGNED_OUT, "detail": detail})


async def test_agents_in_paths(admission: RpcAdmission) -> None:
    alice = user_token("alice")
    status, body = await refused(admission, "/api/v2/workspaceagents/x/coordinate", alice)
    assert (status, body["message"]) == (400, 'Invalid UUID "x".')
    missing = await refused(admission, f"/api/v2/workspaceagents/{peer_id('nobody')}/coordinate", alice)
    foreign = await refused(admission, BOBS, alice)
    assert missing == foreign == (404, {"message": NO_SUCH_AGENT})


# Versions.


@pytest.mark.parametrize(
    ("version", "detail"),
    [
        ("2.99", "server is at version 2.4, behind requested minor version 2.99"),
        ("3.0", "server is at version 2.4, behind requested major version 3.0"),
        ("1.0", "version 1.0 is no longer supported"),
        ("two", "invalid version string: two"),
    ],
)
@pytest.mark.parametrize(
    ("path", "token"),
    [(f"{OWN}/rpc", agent_token("main")), (MAIN, user_token("alice")), (MANY, user_token("alice"))],
)
async def test_versions_that_are_not_served(
    admission: RpcAdmission, path: str, token: str, version: str, detail: str
) -> None:
    assert await refused(admission, f"{path}?version={version}", token) == (
        400,
        {
            "message": "Unknown or unsupported API version",
            "validations": [{"field": "version", "detail": detail}],
        },
    )


# Resume tokens.


DOORS = {f"{MAIN}?version=2.0": PeerKind.CLIENT, f"{MANY}?version=2.3": PeerKind.CLIENT_OF_MANY}


def of_alice(kind: PeerKind) -> str:
    return audience(kind.value, make_id("alice"))


@pytest.mark.parametrize("path", DOORS)
async def test_a_resume_token_names_the_peer(admission: RpcAdmission, path: str) -> None:
    old = peer_id("an earlier connection")
    token = TOKENS.issue(old, of_alice(DOORS[path]), NOW - 60).token
    verdict = await accepted(admission, f"{path}&resume_token={token}", user_token("alice"))
    assert (verdict.peer_id, verdict.resumed) == (old, True)


async def test_an_empty_resume_token_is_none(admission: RpcAdmission) -> None:
    verdict = await accepted(admission, f"{MANY}?resume_token=", user_token("alice"))
    assert (verdict.peer_id, verdict.resumed) == (FRESH, False)


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("kind", ["forged", "expired", "of another key", "of another user", "of another door"])
async def test_resume_tokens_that_are_refused(admission: RpcAdmission, path: str, kind: str) -> None:
    issuer, at, whose = TOKENS, NOW, of_alice(DOORS[path])
    if kind == "of another user":
        whose = audience(DOORS[path].value, make_id("bob"))
    if kind == "of another door":
        whose = of_alice(PeerKind.CLIENT if DOORS[path] is PeerKind.CLIENT_OF_MANY else PeerKind.CLIENT_OF_MANY)
    if kind == "expired":
        at = NOW - 25 * 3600
    if kind == "of another key":
        issuer = ResumeTokens(ResumeKey("k1", b"t" * 64))
    token = "forged" if kind == "forged" else issuer.issue(FRESH, whose, at).token
    status, body = await refused(admission, f"{path}&resume_token={token}", user_token("alice"))
    assert (status, body["message"]) == (401, "Invalid resume token")
    assert body["detail"]
    assert body["validations"] == [{"field": "resume_token", "detail": "Invalid resume token"}]


async def test_keys_are_asked_for_anew(world: World) -> None:
    current = [TOKENS]
    admission = make(world, tokens=lambda: current[0])
    later = ResumeTokens(ResumeKey("k2", b"u" * 64), [KEY])
    current[0] = later
    for issuer in (TOKENS, later):
        target = f"{MANY}?resume_token={issuer.issue(peer_id('old'), of_alice(PeerKind.CLIENT_OF_MANY), NOW).token}"
        assert (await accepted(admission, target, user_token("alice"))).resumed


# The order of the checks: each request is wrong in this and in every later respect.


async def test_the_order_of_refusals_to_clients(world: World) -> None:
    admission = make(world, browser_only=True)
    alice, lost = user_token("alice"), {"upgrade": "", "origin": "https://evil.example.com"}
    wrong = "?version=9.9&resume_token=forged"
    bad_id = "/api/v2/workspaceagents/x/coordinate"
    steps = [
        await refused(admission, bad_id + wrong, "", method="POST", headers=lost),
        await refused(admission, bad_id + wrong, "", headers=lost),
        await refused(admission, bad_id + wrong, alice, headers=lost),
        await refused(admission, BOBS + wrong, alice, headers=lost),
        await refused(admission, MAIN + wrong, alice, headers=lost),
    ]
    admission = make(world)
    steps += [
        await refused(admission, MAIN + wrong, alice, headers=lost),
        await refused(admission, f"{MAIN}?version=2.0&resume_token=forged", alice, headers=lost),
        await refused(admission, f"{MAIN}?version=2.0", alice, headers=lost),
        await refused(admission, f"{MAIN}?version=2.0", alice, headers={"upgrade": ""}),
    ]
    assert [status for status, _ in steps] == [405, 401, 400, 404, 409, 400, 401, 403, 426]


async def test_browser_only_says_what_to_change(world: World) -> None:
    status, body = await refused(make(world, browser_only=True), MANY, user_token("alice"))
    assert status == 409
    assert "browser_only" in str(body["detail"])
    await accepted(make(world, browser_only=True), f"{OWN}/rpc", agent_token("main"))


async def test_a_lost_upgrade_names_the_suspect(admission: RpcAdmission) -> None:
    status, body = await refused(admission, f"{OWN}/rpc", agent_token("main"), headers={"connection": "close"})
    assert status == 426
    assert "proxy" in str(body["detail"])


async def test_another_method(admission: RpcAdmission) -> None:
    assert (await refused(admission, MANY, user_token("alice"), method="POST"))[0] == 405


async def test_a_target_that_is_not_ours(admission: RpcAdmission) -> None:
    assert await refused(admission, "/elsewhere") == (404, {"message": "Route not found."})


async def test_tokens_in_the_query(admission: RpcAdmission) -> None:
    for name in ("coder_session_token", "access_token"):
        verdict = await admission.judge("GET", f"{OWN}/rpc?{name}={agent_token('main')}", UPGRADE)
        assert isinstance(verdict, Accepted)


async def test_a_store_that_is_away_is_not_permanent(world: World, admission: RpcAdmission) -> None:
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE counters RENAME TO lost")
    status, _ = await refused(admission, f"{OWN}/rpc", agent_token("main"))
    assert status == 503


# Without a task.


async def test_callers_in_memory_are_judged_at_once(admission: RpcAdmission) -> None:
    asked = ("GET", f"{OWN}/rpc?version=2.4", UPGRADE | {"coder-session-token": agent_token("main")})
    assert admission.judge_now(*asked) is None  # nobody is in memory yet
    verdict = await admission.judge(*asked)
    assert isinstance(verdict, Accepted)
    assert admission.judge_now(*asked) == verdict
    refused_now = admission.judge_now("GET", f"{OWN}/rpc?version=9.9", asked[2])
    assert isinstance(refused_now, RefusedPeer)
    assert refused_now.status == 400
    # An agent that came is known by its id too; another one, needed later in the order of checks, is still missing.
    alice = UPGRADE | {"coder-session-token": user_token("alice")}
    await admission.judge("GET", MANY, alice)
    assert isinstance(admission.judge_now("GET", f"{MAIN}?version=2.0", alice), Accepted)
    other = f"/api/v2/workspaceagents/{peer_id('gpu')}/coordinate?version=2.0"
    assert admission.judge_now("GET", other, alice) is None
    # And waiting works again afterwards.
    assert isinstance(await admission.judge("GET", other, alice), Accepted)
    assert isinstance(admission.judge_now("GET", other, alice), Accepted)
