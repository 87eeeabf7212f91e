"""Admission by a control plane: what it says, how long that is believed, and what happens when it does not answer."""

import json
import socket
from contextlib import AbstractAsyncContextManager
from functools import partial

import pytest
import trio
import trio.testing

from derp.errors import ConnectError
from derp.keys import MeshKey, NodePrivate
from derp.protocol.messages import RecvPacket
from derp.server.address import address_group
from derp.server.admission import Finding, Question, Verdict
from derp.server.advisor import REFUSED_TEXT, health_frame
from derp.server.server import RelayServer
from derp.server.verify import (
    COMPLAIN_SECONDS,
    LOOK_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_ASKING,
    MAX_ASKING_PER_ADDRESS,
    NO_SECONDS,
    YES_SECONDS,
    UrlJudge,
    Verifier,
    open_verifier,
    read_answer,
)
from derp.transport.fetch import Fetched, HttpCaller
from derp.transport.http import Request
from tests.derp.server.control_plane import NO, YES, Answer, ControlPlane, open_control_plane
from tests.derp.server.test_server import UPGRADE, client_info, frame
from tests.derp.server.world import (
    HOST,
    PATIENCE_SECONDS,
    ask,
    call,
    closed,
    dial,
    open_bystanders,
    open_server,
    port_of,
    relay_config,
)

pytestmark = pytest.mark.usefixtures("refused_briefly")

KEY = bytes(range(32))


def unused_url() -> str:
    with socket.create_server((HOST, 0)) as unused:
        return f"http://{HOST}:{unused.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        (b'{"Allow":true}', (True, "")),
        (b'{"allow":true,"more":1}', (True, "")),
        (b'{"ALLOW": true}', (True, "")),
        (b'{"Allow":true,"Tenant":"acme"}', (True, "acme")),
        (b'{"allow":true,"tenant":""}', (True, "")),
        (b'{"Allow":true,"Tenant":null}', (True, "")),
        (b'{"Allow":false}', (False, "")),
        (b'{"Allow":1}', (False, "")),
        (b'{"Allow":"true"}', (False, "")),
        (b'{"Allow":null}', (False, "")),
        (b"{}", (False, "")),
    ],
)
def test_what_counts_as_a_yes(body: bytes, allowed: tuple[bool, str]) -> None:
    assert read_answer(body) == allowed


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"true", "no {"),
        (b"[true]", "no {"),
        (b"null", "no {"),
        (b"", "no {"),
        (b"\xff\xfe", "no {"),
        (b'{"Allow":true', "no {"),
        (b"[" * 4096, "no {"),
        (b'{"Allow":true,"Tenant":"a b"}', 'a "Tenant" that wants a name'),
        (b'{"Allow":true,"Tenant":["acme"]}', 'a "Tenant" that wants a name'),
    ],
)
def test_what_is_no_answer(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_answer(body)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def url_verifier(url: str, *, fail_open: bool = False, clock: Clock | None = None) -> Verifier:
    judges = [UrlJudge(url, fail_open=fail_open)]
    return Verifier(judges, clock=clock) if clock is not None else Verifier(judges)


def cached(verifier: Verifier, key: bytes = KEY, address: str = HOST) -> bool | None:
    verdict = verifier.cached(key, address)
    return verdict.allowed if verdict is not None else None


async def verdict_of(verifier: Verifier, key: bytes = KEY, address: str = HOST) -> bool:
    answers: list[bool] = []
    done = trio.Event()

    def answer(verdict: Verdict) -> None:
        answers.append(verdict.allowed)
        done.set()

    assert verifier.ask(Question(key, address, answer)) is None
    with trio.fail_after(PATIENCE_SECONDS):
        await done.wait()
    (verdict,) = answers
    return verdict


@pytest.mark.parametrize(("answer", "allowed", "seconds"), [(YES, True, YES_SECONDS), (NO, False, NO_SECONDS)])
async def test_an_answer_is_believed_for_a_while(
    nursery: trio.Nursery, answer: Answer, allowed: bool, seconds: float
) -> None:
    clock = Clock()
    async with open_control_plane(lambda request: answer) as plane:
        verifier = url_verifier(plane.url, clock=clock)
        await nursery.start(verifier.run)
        assert cached(verifier) is None
        assert await verdict_of(verifier) is allowed
        assert cached(verifier) is allowed
        assert cached(verifier, KEY, "::1") is None
        assert cached(verifier, KEY[::-1]) is None
        clock.now += seconds - 0.001
        assert cached(verifier) is allowed
        clock.now += 0.001
        assert cached(verifier) is None
        (request,) = plane.requests
        assert request.body == b'{"NodePublic":"nodekey:' + KEY.hex().encode() + b'","Source":"127.0.0.1"}'
        assert json.loads(request.body)["Source"] == HOST
        assert (verifier.allowed_count, verifier.refused_count) == (int(allowed), int(not allowed))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        (500, b'{"Allow":true}'),
        (404, b""),
        (307, b""),
        (204, b""),
        (200, b"<html>"),
        (200, b" " * MAX_ANSWER_BYTES + b'{"Allow":true}'),
    ],
)
async def test_a_bad_answer_is_a_no_in_either_mode_and_told(
    nursery: trio.Nursery, answer: Answer, fail_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_control_plane(lambda request: answer) as plane:
        verifier = url_verifier(plane.url, fail_open=fail_open)
        await nursery.start(verifier.run)
        assert await verdict_of(verifier) is False
        assert {answer: count for answer, count in verifier.totals().items() if count} == {"faulty": 1}
        assert f"{plane.url} answered " in caplog.text
        assert ("to where it leads" in caplog.text) is (answer[0] == 307)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fail_open", [False, True])
async def test_nobody_there_is_what_the_fail_mode_says_and_is_not_kept(nursery: trio.Nursery, fail_open: bool) -> None:
    verifier = url_verifier(unused_url(), fail_open=fail_open)
    await nursery.start(verifier.run)
    assert await verdict_of(verifier) is fail_open
    assert cached(verifier) is None
    assert (verifier.allowed_count, verifier.refused_count, verifier.unreachable_count) == (0, 0, 1)
    nursery.cancel_scope.cancel()


class SlowCaller(HttpCaller):
    """Counts the questions that are on their way at a time."""

    def __init__(self) -> None:
        super().__init__(timeout_seconds=1.0)
        self.now = self.most = self.total = 0
        self.gate = trio.Event()
        self.bodies: list[bytes] = []

    async def post(self, url: str, body: bytes, max_bytes: int) -> Fetched:
        self.now += 1
        self.total += 1
        self.bodies.append(body)
        self.most = max(self.most, self.now)
        await self.gate.wait()
        self.now -= 1
        raise ConnectError("nobody")


async def test_questions_on_their_way_are_bounded(nursery: trio.Nursery) -> None:
    caller = SlowCaller()
    verifier = Verifier([UrlJudge("http://x/", fail_open=True, http=caller)])
    await nursery.start(verifier.run)
    answers: list[Verdict] = []
    asking = MAX_ASKING_PER_ADDRESS
    for number in range(MAX_ASKING):
        verifier.ask(Question(key_of(number), HOST, answers.append))
    await trio.testing.wait_all_tasks_blocked()
    assert (caller.most, answers) == (asking, []), "one address may not have all of them"
    for number in range(2 * MAX_ASKING):
        verifier.ask(Question(key_of(number), f"192.0.2.{number}", answers.append))
    await trio.testing.wait_all_tasks_blocked()
    assert (caller.most, answers) == (MAX_ASKING, [])
    caller.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(answers) == 3 * MAX_ASKING
    nursery.cancel_scope.cancel()


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def test_nobody_is_asked_about_those_who_left(nursery: trio.Nursery) -> None:
    caller = SlowCaller()
    verifier = Verifier([UrlJudge("http://x/", fail_open=True, http=caller)])
    await nursery.start(verifier.run)
    answers: list[Verdict] = []
    is_there = dict.fromkeys(range(4000), True)
    for number in range(4000):
        verifier.ask(Question(key_of(number), HOST, answers.append, partial(is_there.__getitem__, number)))
    is_there.update(dict.fromkeys(is_there, False))
    verifier.ask(Question(KEY, HOST, answers.append))
    caller.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert caller.total == MAX_ASKING_PER_ADDRESS + 1, "those on their way when they left, and the one who is there"
    assert (verifier.left_count, len(answers)) == (4000 - MAX_ASKING_PER_ADDRESS, MAX_ASKING_PER_ADDRESS + 1)
    nursery.cancel_scope.cancel()


async def test_a_flood_from_one_address_keeps_nobody_else_waiting(nursery: trio.Nursery) -> None:
    caller = SlowCaller()
    verifier = Verifier([UrlJudge("http://x/", fail_open=True, http=caller)])
    await nursery.start(verifier.run)
    honest: list[Verdict] = []
    for number in range(4000):  # of IPv6, where one customer has as many addresses as it likes
        verifier.ask(Question(key_of(number), f"2001:db8::{number:x}", lambda verdict: None))
    verifier.ask(Question(KEY, "2001:db8:0:1::1", honest.append))
    await trio.testing.wait_all_tasks_blocked()
    assert "2001:db8:0:1::1" in [json.loads(body)["Source"] for body in caller.bodies]
    nursery.cancel_scope.cancel()


async def test_beyond_a_bound_one_is_refused_at_once_and_counted(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("derp.server.verify.MAX_WAITING", 10)
    verifier = Verifier([UrlJudge("http://x/", fail_open=True, http=SlowCaller())])
    await nursery.start(verifier.run)
    refused: list[int] = []

    def ask(number: int, address: str) -> None:
        verdict = verifier.ask(Question(key_of(number), address, lambda verdict: refused.append(number)))
        if verdict is not None:
            assert not verdict.allowed, "also where a judge that does not answer lets everybody in"
            refused.append(number)

    for number in range(MAX_ASKING_PER_ADDRESS + 12):
        ask(number, HOST)
    assert refused == [MAX_ASKING_PER_ADDRESS + 10, MAX_ASKING_PER_ADDRESS + 11]
    for number in range(1000, 1000 + MAX_ASKING - MAX_ASKING_PER_ADDRESS):
        ask(number, f"192.0.2.{number - 1000}")
    assert len(refused) == 2, "these are on their way"
    ask(2000, "198.51.100.1")
    assert refused[2:] == [MAX_ASKING_PER_ADDRESS + 9], "the newest of who has most makes room"
    assert verifier.totals()["overloaded"] == 3
    assert caplog.text.count("10 clients wait to be asked about") == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_who_counts_as_one(address: str, group: str) -> None:
    assert address_group(address) == group


async def test_what_is_remembered_is_bounded(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.server.verify.MAX_CACHED", 2)
    async with open_control_plane(lambda request: YES) as plane:
        verifier = url_verifier(plane.url)
        await nursery.start(verifier.run)
        keys = [bytes([number]) * 32 for number in range(3)]
        for key in keys:
            await verdict_of(verifier, key)
        # the one asked about longest ago made room
        assert [cached(verifier, key) for key in keys] == [None, True, True]
        nursery.cancel_scope.cancel()


class Word:
    """A judge of one word; `looks` are what it shows, the last one for ever."""

    def __init__(self, verdict: Verdict, *looks: Finding) -> None:
        self.http = HttpCaller(timeout_seconds=1.0)
        self.verdict = verdict
        self.looks = list(looks)
        self.asked = 0

    async def judge(self, key: bytes, address: str) -> Verdict:
        self.asked += 1
        return self.verdict

    async def look(self) -> Finding | None:
        if not self.looks:
            return None
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


SAYS_YES, SAYS_NO = Verdict(True), Verdict(False, "no")
IS_DOWN, FAILS_OPEN = Verdict(False, "down", faulty=True, answered=False), Verdict(True, "down", True, False)


@pytest.mark.parametrize(
    ("first", "second", "allowed", "kept", "second_asked"),
    [
        (SAYS_YES, SAYS_YES, True, True, 1),
        (SAYS_YES, SAYS_NO, False, True, 1),
        (SAYS_NO, SAYS_YES, False, True, 0),
        (IS_DOWN, SAYS_YES, False, False, 0),
        (SAYS_YES, IS_DOWN, False, False, 1),
        (SAYS_YES, FAILS_OPEN, True, False, 1),
        (SAYS_NO, FAILS_OPEN, False, True, 0),
        (FAILS_OPEN, SAYS_YES, True, False, 1),
        (FAILS_OPEN, SAYS_NO, False, True, 1),
    ],
)
async def test_every_judge_has_to_allow(
    nursery: trio.Nursery, first: Verdict, second: Verdict, allowed: bool, kept: bool, second_asked: int
) -> None:
    judges = [Word(first), Word(second)]
    verifier = Verifier(judges)
    await nursery.start(verifier.run)
    assert await verdict_of(verifier) is allowed
    assert cached(verifier) is (allowed if kept else None)
    assert [judge.asked for judge in judges] == [1, second_asked]
    nursery.cancel_scope.cancel()


async def test_a_storm_of_failures_is_one_line_and_a_number(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    clock, judge = Clock(), Word(IS_DOWN)
    verifier = Verifier([judge], clock=clock)
    await nursery.start(verifier.run)
    for _ in range(3):
        await verdict_of(verifier)
    clock.now += COMPLAIN_SECONDS
    await verdict_of(verifier)
    judge.verdict = FAILS_OPEN
    await verdict_of(verifier)
    assert caplog.messages == [
        "! admission: down; refused",
        "! admission: down; refused (2 more times)",
        "! admission: down; refused",
        "! admission: down; let in",
    ]
    nursery.cancel_scope.cancel()


async def test_a_judge_that_cannot_answer_is_told_of_before_anybody_comes(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level("INFO")
    gone, back = Finding(False, "gone"), Finding(True, "back")
    verifier = Verifier([Word(SAYS_YES), Word(SAYS_YES, gone, gone, back)])
    await nursery.start(verifier.run)
    await trio.testing.wait_all_tasks_blocked()
    assert verifier.problem == "gone"
    await trio.sleep(1.5 * LOOK_SECONDS)
    assert caplog.messages == ["! admission: gone"]
    await trio.sleep(LOOK_SECONDS)
    assert caplog.messages == ["! admission: gone", "= admission: back"]
    assert verifier.problem == ""
    nursery.cancel_scope.cancel()


async def test_a_question_shows_a_fault_before_the_next_look(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level("INFO")
    watched, other = Word(SAYS_YES, Finding(True, "well")), Word(SAYS_YES)
    verifier = Verifier([watched, other])
    await nursery.start(verifier.run)
    await trio.testing.wait_all_tasks_blocked()
    watched.verdict = IS_DOWN
    await verdict_of(verifier)
    assert verifier.problem == "down"
    watched.verdict, other.verdict = SAYS_YES, FAILS_OPEN
    await verdict_of(verifier)
    assert verifier.problem == "down"  # the other one, which let the client in
    other.verdict = SAYS_YES
    await verdict_of(verifier)
    assert verifier.problem == ""
    await trio.sleep(3 * LOOK_SECONDS)
    assert caplog.messages == [
        "= admission: well",
        "! admission: down; refused",
        "! admission: down; let in",
        "= admission: well",
    ]
    nursery.cancel_scope.cancel()


async def test_what_lasts_is_told_once_however_many_are_allowed_meanwhile(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    verifier = Verifier([Word(SAYS_YES, Finding(False, "stale", lasting=True))])
    await nursery.start(verifier.run)
    for _ in range(3):
        await trio.testing.wait_all_tasks_blocked()
        assert await verdict_of(verifier)
        assert verifier.problem == "stale"
        await trio.sleep(LOOK_SECONDS)
    assert caplog.messages == ["! admission: stale"]
    nursery.cancel_scope.cancel()


def test_who_is_asked_by_the_settings() -> None:
    assert open_verifier(relay_config()) is None
    assert open_verifier(relay_config(verify_clients=True)) is not None
    assert open_verifier(relay_config(verify_client_url="http://x/")) is not None


# --- in a relay


def open_verifying(plane: ControlPlane, **changes: object) -> AbstractAsyncContextManager[RelayServer]:
    return open_server(relay_config(verify_client_url=plane.url, **changes))


async def test_yes_comes_in_no_is_closed_and_others_never_wait() -> None:
    allowed: set[str] = set()

    def answer(request: Request) -> Answer:
        return YES if json.loads(request.body)["NodePublic"] in allowed else NO

    one, other, guest, stranger = (NodePrivate.generate() for _ in range(4))
    allowed |= {f"nodekey:{private.public().raw.hex()}" for private in (one, other, guest)}
    async with open_control_plane(answer) as plane, open_verifying(plane) as server:
        a, b = await call(server, private=one), await call(server, private=other)
        plane.gate = trio.Event()  # from here on it is slow
        plane.asked = trio.Event()
        stream = await dial(server)
        key = server.relay.public_key.raw
        packet = frame(0x04, a.key + b"behind the handshake")
        await stream.send_all(UPGRADE + client_info(guest, key) + packet)
        await plane.asked.wait()
        await a.send(b.key, b"meanwhile")
        assert await b.receive() == RecvPacket(a.key, b"meanwhile")
        plane.gate.set()
        assert await a.receive() == RecvPacket(guest.public().raw, b"behind the handshake")
        rest = (await ask(server, UPGRADE + client_info(stranger, key))).partition(b"\r\n\r\n")[2]
        assert rest == server.relay.sessions.greeting + health_frame(REFUSED_TEXT)
        assert closed(server) == {"not_admitted": 1}
        asked = len(plane.requests)
        again = await call(server, private=guest)  # which is remembered
        assert len(plane.requests) == asked
        for caller in (a, b, again):
            await caller.aclose()
        await stream.aclose()


@pytest.mark.parametrize("fail_open", [False, True])
async def test_a_relay_whose_control_plane_is_down(fail_open: bool) -> None:
    config = relay_config(verify_client_url=unused_url(), verify_client_url_fail_open=fail_open)
    async with open_server(config) as server:
        if fail_open:
            async with open_bystanders(server) as bystanders:
                await bystanders.go_on()
        else:
            await ask(server, UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            assert closed(server) == {"not_admitted": 1}


@pytest.mark.parametrize("how", ["resets", "leaves"])
async def test_a_client_that_left_while_the_question_was_open_harms_nobody(how: str) -> None:
    async with (
        open_control_plane(lambda request: YES) as plane,
        open_verifying(plane) as server,
        open_bystanders(server) as others,
    ):
        plane.gate, plane.asked = trio.Event(), trio.Event()
        stream = await dial(server)
        await stream.send_all(UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
        await plane.asked.wait()
        if how == "resets":
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        # no checkpoint between the two: the relay hears the answer before it can have seen the end
        stream.socket.close()
        plane.gate.set()
        await others.go_on()
        assert sum(closed(server).values()) == 1
        assert len(server.relay.router.clients) == 2


async def test_a_login_does_not_wait_for_questions_about_clients_that_have_gone() -> None:
    async with open_control_plane(lambda request: YES) as plane, open_verifying(plane) as server:
        plane.gate = trio.Event()
        for _ in range(40):  # each from an address of its own, as far as a test can have them
            stream = await dial(server)
            await stream.send_all(UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            await stream.receive_some(65536)
            await stream.aclose()
        verifier = server.relay.verifier
        assert verifier is not None
        with trio.fail_after(PATIENCE_SECONDS):
            while len(plane.requests) < MAX_ASKING_PER_ADDRESS:
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_in, server)
                while len(verifier._turns) < 25:  # the 24 that wait, and this one
                    await trio.lowlevel.checkpoint()
                plane.gate.set()
        assert verifier.left_count == 40 - MAX_ASKING_PER_ADDRESS
        assert len(plane.requests) == MAX_ASKING_PER_ADDRESS + 1


async def come_in(server: RelayServer) -> None:
    await (await call(server)).aclose()


async def test_a_control_plane_that_is_slower_than_the_handshake_may_be() -> None:
    async with open_control_plane(lambda request: YES) as plane:
        plane.gate = trio.Event()
        async with open_verifying(plane, handshake_timeout_seconds=0.3) as server:
            assert server.relay.verifier is not None
            await ask(server, UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            assert closed(server) == {"handshake_timeout": 1}
            plane.gate.set()
            while not server.relay.verifier.allowed_count:
                await trio.lowlevel.checkpoint()
            assert len(server.relay.router.clients) == 0


async def test_clients_that_wait_when_the_relay_starts_are_asked_about() -> None:
    """They are in the backlog with everything said, so the first thing the relay does is to ask."""
    async with open_control_plane(lambda request: YES) as plane, trio.open_nursery() as nursery:
        server = RelayServer(relay_config(verify_client_url=plane.url))
        server.open()
        waiting = []
        for _ in range(5):
            client = socket.create_connection((HOST, port_of(server)))
            client.sendall(UPGRADE + client_info(NodePrivate.generate(), server.relay.public_key.raw))
            waiting.append(client)
        nursery.start_soon(server.run)
        with trio.fail_after(PATIENCE_SECONDS):
            while len(server.relay.router.clients) + sum(closed(server).values()) < 5:
                await trio.lowlevel.checkpoint()
        assert closed(server) == {}
        for client in waiting:
            client.close()
        nursery.cancel_scope.cancel()
    server.close()


async def test_mesh_peers_are_not_asked_about() -> None:
    mesh_key = MeshKey(b"m" * 32)
    async with open_control_plane(lambda request: NO) as plane, open_verifying(plane, mesh_key=mesh_key) as server:
        peer = await call(server, mesh_key=mesh_key)
        assert plane.requests == []
        await peer.aclose()
