"""Admission by a tailscaled: each of its answers and failures, against a real server on a Unix socket."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from derp.keys import MeshKey, NodePrivate
from derp.server.admission import Verdict
from derp.server.advisor import REFUSED_TEXT, health_frame
from derp.server.server import RelayServer
from derp.server.tailscaled import MAX_ANSWER_BYTES, TailscaledJudge
from tests.derp.server.control_plane import NO, YES, Answer, open_control_plane
from tests.derp.server.tailscaled import HOST_NAME, OWN_KEY, Tailscaled, open_tailscaled
from tests.derp.server.test_door import last_get
from tests.derp.server.test_server import UPGRADE, client_info
from tests.derp.server.world import ask, call, closed, open_server, relay_config

pytestmark = pytest.mark.usefixtures("refused_briefly")

KEY = bytes(range(32))
NODE = b'{"Node":{"Key":"nodekey:00"}}'


@asynccontextmanager
async def open_judge(path: Path) -> AsyncIterator[TailscaledJudge]:
    judge = TailscaledJudge(str(path))
    async with judge.http:
        yield judge


async def test_it_is_asked_as_genuine_relays_ask_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_tailscaled(path) as tailscaled, open_judge(path) as judge:
        assert await judge.judge(KEY, "192.0.2.1") == Verdict(False, f"the tailscaled at {path} does not know it")
        tailscaled.nodes.add(KEY)
        assert await judge.judge(KEY, "192.0.2.1") == Verdict(True)
        for request in tailscaled.requests:
            assert (request.method, request.headers["host"]) == ("GET", HOST_NAME)
            assert request.target == f"/localapi/v0/whois?addr=nodekey%3A{KEY.hex()}"
        assert len(tailscaled.requests) == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            (400, b"invalid 'addr' parameter\n"),
            "the tailscaled at {path} is too old to be asked about node keys: update",
        ),
        ((400, b"missing 'addr' parameter\n"), "the tailscaled at {path} answered 400, \"missing 'addr' parameter\""),
        ((403, b"whois access denied\n"), "refuses to tell us (403, 'whois access denied'): run the relay as a user"),
        ((401, b"who are you?"), "refuses to tell us (401, 'who are you?')"),
        ((500, b"server has no local backend"), "answered 500, 'server has no local backend'"),
        ((503, b"x" * 5000), "answered 503, '" + "x" * 200 + "'"),
        ((204, b""), "answered 204, ''"),
        ((302, NODE), "answered 302"),
        ((200, b""), "answered something else than a node: is that the socket of a tailscaled?"),
        ((200, b"null"), "answered something else than a node"),
        ((200, b"[]"), "answered something else than a node"),
        ((200, b"{}"), "answered something else than a node"),
        ((200, b'{"Node":null}'), "answered something else than a node"),
        ((200, b"[" * 100_000), "answered something else than a node"),
        ((200, b" " * MAX_ANSWER_BYTES + NODE), "answered something else than a node"),
    ],
)
async def test_every_other_answer_refuses_and_says_what_to_change(tmp_path: Path, answer: Answer, says: str) -> None:
    path = tmp_path / "s"
    async with open_tailscaled(path) as tailscaled, open_judge(path) as judge:
        tailscaled.instead["whois"] = answer
        verdict = await judge.judge(KEY, "192.0.2.1")
        assert (verdict.allowed, verdict.faulty, verdict.answered) == (False, True, True)
        assert says.format(path=path) in verdict.because


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def forbidden_socket(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open everything")
    dead_socket(path)
    path.chmod(0)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda path: None, "there is no such socket: start the service that makes it, or correct the path"),
        (dead_socket, "nobody listens there: start the service behind it, or correct the path"),
        (Path.touch, "nobody listens there"),
        (forbidden_socket, "this user may not open it: its mode, or that of a folder above it, forbids that"),
    ],
    ids=["missing", "left behind", "no socket", "forbidden"],
)
async def test_a_socket_that_cannot_be_opened(tmp_path: Path, prepare: object, says: str) -> None:
    path = tmp_path / "s"
    assert callable(prepare)
    prepare(path)
    async with open_judge(path) as judge:
        expected = f"tailscaled: {path} cannot be reached: {says}"
        verdict = await judge.judge(KEY, "192.0.2.1")
        assert (verdict.allowed, verdict.faulty, verdict.answered) == (False, True, False)
        assert verdict.because.startswith(expected)
        finding = await judge.look()
        assert finding is not None
        assert not finding.well
        assert finding.text.startswith(expected)
        assert finding.text.endswith("; until then clients are refused")


async def test_one_that_hangs_up_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with open_judge(path) as judge:
        async with open_tailscaled(path) as tailscaled:
            tailscaled.nodes.add(KEY)
            assert (await judge.judge(KEY, "")).allowed
            tailscaled.instead["whois"] = None
            verdict = await judge.judge(KEY, "")
            assert (verdict.allowed, verdict.answered) == (False, False)
            assert verdict.because.startswith(f"tailscaled: {path} cannot be reached: ")
        path.unlink()
        # restarted: the connections that were kept are of no more use
        async with open_tailscaled(path) as tailscaled:
            tailscaled.nodes.add(KEY)
            assert (await judge.judge(KEY, "")).allowed


async def test_one_that_does_not_answer(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        async with open_judge(path) as judge:
            verdict = await judge.judge(KEY, "")
            assert verdict == Verdict(False, f"tailscaled: {path} did not answer within 5 s", True, False)


@pytest.mark.parametrize(
    ("state", "well", "says"),
    [
        ("Running", True, "is asked about each client (version 1.2.3)"),
        ("Starting", True, "is asked about each client"),  # it waits for a relay, and has its netmap
        ("NeedsLogin", False, "is not logged in, so it knows nobody: run `tailscale up` on this machine"),
        ("NeedsMachineAuth", False, "waits for its machine to be approved"),
        ("Stopped", False, "is down, so it learns of nobody new"),
        ("NoState", False, "has not started yet"),
    ],
)
async def test_its_state_is_told(tmp_path: Path, state: str, well: bool, says: str) -> None:
    path = tmp_path / "s"
    async with open_tailscaled(path) as tailscaled, open_judge(path) as judge:
        tailscaled.state = state
        finding = await judge.look()
        assert finding is not None
        assert finding.well is well
        assert finding.text.startswith(f"the tailscaled at {path} {says}")
        assert finding.lasting is not well


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        ({"status": (200, b"{}")}, "does not say who it is: is that the socket of a tailscaled?"),
        ({"status": (200, b'{"Self":{"PublicKey":"banana"}}')}, "does not say who it is"),
        ({"status": (200, b'{"Self":[]}')}, "does not say who it is"),
        ({"status": (404, b"page not found")}, "answered 404, 'page not found'; until then clients are refused"),
        ({"whois": (404, b"")}, "does not know it, although that is its own key; clients may be refused"),
        ({"whois": (400, b"invalid 'addr' parameter")}, "is too old to be asked about node keys: update it, although"),
    ],
)
async def test_a_look_that_shows_a_fault(tmp_path: Path, instead: dict[str, Answer | None], says: str) -> None:
    path = tmp_path / "s"
    async with open_tailscaled(path) as tailscaled, open_judge(path) as judge:
        tailscaled.instead = instead
        finding = await judge.look()
        assert finding is not None
        assert not finding.well
        assert says in finding.text


# --- in a relay


def knows(tailscaled: Tailscaled, *nodes: NodePrivate) -> None:
    tailscaled.nodes |= {node.public().raw for node in nodes}


async def is_refused(server: RelayServer, private: NodePrivate) -> bool:
    before = closed(server).get("not_admitted", 0)
    rest = (await ask(server, UPGRADE + client_info(private, server.relay.public_key.raw))).partition(b"\r\n\r\n")[2]
    assert rest == server.relay.sessions.greeting + health_frame(REFUSED_TEXT)  # and no ServerInfo
    return closed(server).get("not_admitted", 0) == before + 1


async def test_a_relay_admits_who_is_known_and_remembers_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "s"
    member, stranger = NodePrivate.generate(), NodePrivate.generate()
    config = relay_config(verify_clients=True, tailscaled_socket=str(path), mesh_key=MeshKey(b"m" * 32))
    async with open_tailscaled(path) as tailscaled, open_server(config) as server:
        knows(tailscaled, member)
        caller = await call(server, private=member)
        assert await is_refused(server, stranger)
        assert f"is not admitted: the tailscaled at {path} does not know it" in caplog.text
        asked = len(tailscaled.questions)
        again = await call(server, private=member)
        assert len(tailscaled.questions) == asked == 2
        relay = await call(server, mesh_key=MeshKey(b"m" * 32))  # no node of the tailnet, and not asked about
        assert len(tailscaled.questions) == asked
        for each in (caller, again, relay):
            await each.aclose()


async def test_a_relay_without_its_tailscaled_is_closed_until_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    member = NodePrivate.generate()
    config = relay_config(verify_clients=True, tailscaled_socket=str(path))
    async with open_server(config) as server:
        assert await is_refused(server, member)
        assert "; refused" in caplog.text
        assert server.relay.verifier is not None
        while not server.relay.verifier.problem:
            await trio.lowlevel.checkpoint()
        assert "; until then clients are refused" in caplog.text
        check = await ask(server, last_get(b"/debug/check"))
        assert check.startswith(b"HTTP/1.1 500 ")
        assert f"admission: tailscaled: {path} cannot be reached".encode() in check
        async with open_tailscaled(path) as tailscaled:
            knows(tailscaled, member)
            caller = await call(server, private=member)  # that nobody answered was not remembered
            assert (await ask(server, last_get(b"/debug/check"))).startswith(b"HTTP/1.1 200 ")
            await caller.aclose()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("listed", [False, True])
async def test_all_that_is_set_has_to_allow(tmp_path: Path, known: bool, allowed: bool, listed: bool) -> None:
    path, private = tmp_path / "s", NodePrivate.generate()
    allow = frozenset({private.public().raw if listed else OWN_KEY})
    async with open_tailscaled(path) as tailscaled, open_control_plane(lambda _: YES if allowed else NO) as plane:
        if known:
            knows(tailscaled, private)
        config = relay_config(
            verify_clients=True, tailscaled_socket=str(path), verify_client_url=plane.url, allow_keys=allow
        )
        async with open_server(config) as server:
            if listed and known and allowed:
                await (await call(server, private=private)).aclose()
            else:
                assert await is_refused(server, private)
        # in derper's order, and nobody is asked about a client that is refused already
        assert (len(tailscaled.questions), len(plane.requests)) == (int(listed), int(listed and known))


async def test_a_url_that_fails_open_opens_for_nobody_the_tailscaled_does_not_know(tmp_path: Path) -> None:
    path, member, stranger = tmp_path / "s", NodePrivate.generate(), NodePrivate.generate()
    async with open_tailscaled(path) as tailscaled, open_control_plane(lambda _: None) as plane:
        knows(tailscaled, member)
        config = relay_config(
            verify_clients=True,
            tailscaled_socket=str(path),
            verify_client_url=plane.url,
            verify_client_url_fail_open=True,
        )
        async with open_server(config) as server:
            await (await call(server, private=member)).aclose()
            assert await is_refused(server, stranger)


async def test_who_is_inside_stays_when_the_tailnet_forgets_it(tmp_path: Path) -> None:
    """As with derper: the mesh's ClosePeer is for that."""
    path, one, other = tmp_path / "s", NodePrivate.generate(), NodePrivate.generate()
    config = relay_config(verify_clients=True, tailscaled_socket=str(path))
    async with open_tailscaled(path) as tailscaled, open_server(config) as server:
        knows(tailscaled, one, other)
        a, b = await call(server, private=one), await call(server, private=other)
        tailscaled.nodes.clear()
        await a.send(b.key, b"still here")
        assert (await b.receive()).packet == b"still here"
        await a.aclose()
        await b.aclose()
