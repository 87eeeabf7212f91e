"""Questions to a real server on loopback: one for many, few at a time, kept, and every way in which it can fail."""

import hashlib
import time
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tailnet.auth import call_out
from tailnet.auth.call_out import MAX_ASKING, MAX_ASKING_NEW, CallOut, CallOutEnd
from tailnet.auth.callers import OutsideToken
from tailnet.refusals import Refused
from tailnet.store.rows import Right
from tests.support.control_plane import SECRET, ControlPlane, agent, http, user
from tests.support.seeds import make_id, peer_id

MAIN = peer_id("main")


def token(text: str = "bob's", *, is_agent: bool = False) -> OutsideToken:
    return OutsideToken(hashlib.sha256(text.encode()).digest(), is_agent, text)


@pytest.fixture
async def plane(nursery: trio.Nursery) -> ControlPlane:
    made = ControlPlane()
    await nursery.start(made.serve)
    made.users["bob's"] = user("bob")
    made.agents["main's"] = agent("main")
    made.rights["bob", "main"] = ["ssh"]
    return made


@pytest.fixture
async def asks(plane: ControlPlane, nursery: trio.Nursery) -> CallOut:
    made = CallOut(plane.url, SECRET)
    nursery.start_soon(made.run)
    return made


@pytest.fixture
async def open_asks(plane: ControlPlane, nursery: trio.Nursery) -> CallOut:
    made = CallOut(plane.url, SECRET, fail_open=True)
    nursery.start_soon(made.run)
    return made


def end(asks: CallOut) -> dict[CallOutEnd, int]:
    return {each: count for each, count in asks.ended.items() if count}


async def status(asks: CallOut, who: OutsideToken | None = None) -> int:
    try:
        return 200 if await asks.user(who or token()) is not None else 401
    except Refused as refused:
        return refused.status


def forget_time(asks: CallOut, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers have ended, and nothing has failed a moment ago."""
    for cache in (asks._recent, asks._strangers):
        cache.keep({key: call_out._Entry(entry.answer, entry.asked_at, 0.0) for key, entry in cache._found.items()})
    asks._failed_at = -float("inf")


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # a server and a clock tell nobody
            await trio.sleep(0.01)


async def test_three_questions(plane: ControlPlane, asks: CallOut) -> None:
    bob = await asks.user(token())
    main = await asks.agent(token("main's", is_agent=True))
    reach = await asks.reach(make_id("bob"), MAIN)
    assert bob is not None
    assert main is not None
    assert reach is not None
    assert (bob.username, main.name, reach.rights) == ("bob", "main", {Right.SSH, Right.READ})
    assert await asks.reach(make_id("bob"), peer_id("nobody")) is None
    assert await asks.user(token("nobody's")) is None
    assert end(asks) == {CallOutEnd.YES: 3, CallOutEnd.NO: 2}
    assert plane.unsigned == 0
    assert asks.asked_count == 5
    assert all("content-type: application/json" in head.lower() for head in plane.heads)


async def test_an_answer_is_kept_for_as_long_as_it_says(plane: ControlPlane, asks: CallOut) -> None:
    plane.more = {"max_age": 1}
    for _ in range(5):
        assert await status(asks) == 200
    assert len(plane.questions) == 1
    await until(lambda: asks._fresh(("user", token().digest)) is None)
    plane.users.clear()
    assert await status(asks) == 401
    for _ in range(5):  # and so is a no
        assert await status(asks) == 401
    assert len(plane.questions) == 2


async def test_a_stampede_is_one_question(plane: ControlPlane, asks: CallOut) -> None:
    plane.gate = trio.Event()
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await status(asks))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(1_000):
                nursery.start_soon(ask)
            await until(lambda: bool(plane.questions))
            await wait_all_tasks_blocked()
            assert asks.asking_count == 1
            plane.gate.set()
    assert (len(plane.questions), answers) == (1, [200] * 1_000)


async def test_who_asked_first_and_gives_up_does_not_take_the_others_along(plane: ControlPlane, asks: CallOut) -> None:
    plane.gate = trio.Event()
    answers: list[int] = []
    first = trio.CancelScope()

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await status(asks))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, first)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, trio.CancelScope())
            await until(lambda: bool(plane.questions))
            first.cancel()
            plane.gate.set()
    assert answers == [200]


async def test_few_at_a_time_and_strangers_never_stand_before_those_who_are_known(
    plane: ControlPlane, asks: CallOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [f"known {number}" for number in range(MAX_ASKING + 4)]
    for text in known:
        plane.users[text] = user(text)
        assert await status(asks, token(text)) == 200
    forget_time(asks, monkeypatch)
    plane.gate = trio.Event()
    before = len(plane.questions)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(4 * MAX_ASKING):
                nursery.start_soon(status, asks, token(f"stranger {number}"))
            await until(lambda: len(plane.questions) == before + MAX_ASKING_NEW)
            await wait_all_tasks_blocked(0.05)
            assert len(plane.questions) == before + MAX_ASKING_NEW
            for text in known:
                nursery.start_soon(status, asks, token(text))
            await until(lambda: len(plane.questions) == before + MAX_ASKING)
            await wait_all_tasks_blocked(0.05)
            assert {each["token"] for each in plane.questions[before + MAX_ASKING_NEW :]} <= set(known)
            plane.gate.set()
    assert plane.at_once == MAX_ASKING
    assert end(asks) == {CallOutEnd.YES: 2 * len(known), CallOutEnd.NO: 4 * MAX_ASKING}


async def test_a_stranger_whose_token_it_stumbles_over_shuts_nobody_out(plane: ControlPlane, asks: CallOut) -> None:
    plane.respond = lambda question: http("500 Internal Server Error", b"")
    assert await status(asks, token("\0" * 100)) == 503
    plane.respond = None
    assert await status(asks) == 200


async def test_too_many_are_turned_away_at_once(
    plane: ControlPlane, asks: CallOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_out, "MAX_WAITING_NEW", 2)
    plane.gate = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(status, asks, token(f"{number}"))
            await wait_all_tasks_blocked()
            assert await status(asks) == 503
            plane.gate.set()
    assert asks.ended[CallOutEnd.OVERLOADED] == 1
    assert await status(asks) == 200


@pytest.mark.parametrize(
    ("response", "how", "says"),
    [
        (http("200 OK", b"<!DOCTYPE html><form>Sign in</form>"), "nonsense", "it is a web page: does the URL lead to"),
        (http("200 OK", b"{}"), "nonsense", '"known" is neither true nor false'),
        (http("200 OK", b'{"known": "true"}'), "nonsense", '"known" is neither'),
        (http("200 OK", b'{"known": true, "agent": {}}'), "nonsense", "user is no object"),
        (http("200 OK", b"x" * 70_000), "nonsense", "has more than 65536 bytes"),
        (http("302 Found", b"", "Location: https://evil.example/?token=s3cretHunter2"), "nonsense", "not followed"),
        (http("307 Temporary Redirect", b"", "Location: /who2"), "nonsense", "set --auth-url to where it leads"),
        (http("401 Unauthorized", b""), "nonsense", "is the secret of --auth-secret-file the one that it has?"),
        (http("404 Not Found", b'{"known": false}'), "nonsense", "it answered 404 and not 200"),
        (http("500 Internal Server Error", b'{"known": false}'), "unreachable", "answered 500"),
        (http("429 Too Many Requests", b""), "unreachable", "answered 429"),
        (b"", "unreachable", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "unreachable", "cannot be reached"),
        (b"SSH-2.0-x\r\n\r\n", "unreachable", "cannot be reached"),
    ],
)
async def test_whatever_is_no_answer_lets_nobody_in(
    plane: ControlPlane,
    open_asks: CallOut,
    response: bytes,
    how: str,
    says: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody new; those known are the next test's."""
    plane.respond = lambda question: response
    with trio.fail_after(60):
        assert await status(open_asks) == 503  # not 401, which SDKs take as final
    assert end(open_asks) == {CallOutEnd(how): 1}
    [line] = [record.getMessage() for record in caplog.records if "control plane (--auth-url)" in record.getMessage()]
    assert says in line
    assert "Hunter2" not in line
    assert "bob's" not in caplog.text
    # When it is well again, so is everybody.
    plane.respond = None
    forget_time(open_asks, monkeypatch)
    assert await status(open_asks) == 200


async def test_it_does_not_answer_in_time(
    plane: ControlPlane, asks: CallOut, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(call_out, "DEADLINE_SECONDS", 0.2)
    plane.gate = trio.Event()
    with trio.fail_after(60):
        assert await status(asks) == 503
        # The next one does not wait for the same again.
        assert await status(asks, token("another")) == 503
    assert end(asks) == {CallOutEnd.UNREACHABLE: 1, CallOutEnd.OVERLOADED: 1}
    assert "did not answer within" in caplog.text


async def test_closed_and_open_while_it_is_down(
    plane: ControlPlane, asks: CallOut, open_asks: CallOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (asks, open_asks):
        assert await status(each) == 200
        forget_time(each, monkeypatch)
    plane.respond = lambda question: http("503 Service Unavailable", b"")
    assert await status(asks) == 503
    assert await status(open_asks) == 200  # known a moment ago
    assert await status(open_asks, token("somebody new")) == 503
    # Ten minutes later nobody knows any more.
    monkeypatch.setattr(call_out, "STALE_SECONDS", 0.0)
    open_asks._failed_at = -float("inf")
    assert await status(open_asks) == 503


async def test_a_no_is_not_forgotten_when_it_goes_down(
    plane: ControlPlane, open_asks: CallOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await status(open_asks) == 200
    bob = plane.users.pop("bob's")
    forget_time(open_asks, monkeypatch)
    assert await status(open_asks) == 401
    plane.users["bob's"] = bob
    plane.respond = lambda question: http("503 Service Unavailable", b"")
    forget_time(open_asks, monkeypatch)
    assert await status(open_asks) == 503


async def test_who_is_inside_stays_while_nobody_can_say_and_not_for_ever(
    plane: ControlPlane, asks: CallOut, open_asks: CallOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {token(): (MAIN,), token("main's", is_agent=True): ()}
    for each in (asks, open_asks):
        standing = await each.standing(asked)
        assert (len(standing.callers), list(standing.unanswered)) == (2, [])
        assert standing.rights(token(), MAIN) == {Right.SSH, Right.READ}
        assert all(0 < until - trio.current_time() <= 60 for until in standing.until.values())
    plane.respond = lambda question: http("200 OK", b"<html>")
    for each in (asks, open_asks):
        forget_time(each, monkeypatch)
        standing = await each.standing(asked)
        assert (standing.callers, set(standing.unanswered)) == ({}, set(asked))
    monkeypatch.setattr(call_out, "STALE_SECONDS", 0.0)
    for each, stay in ((asks, False), (open_asks, True)):
        forget_time(each, monkeypatch)
        standing = await each.standing(asked)
        assert (standing.callers, bool(standing.unanswered)) == ({}, stay)
    plane.respond = None
    plane.users.clear()
    forget_time(open_asks, monkeypatch)
    standing = await open_asks.standing(asked)
    assert [each.id for each in standing.callers.values()] == [MAIN]
    assert not standing.unanswered


async def test_without_a_task_nothing_waits_and_nothing_is_asked(plane: ControlPlane, asks: CallOut) -> None:
    asks.no_wait = True
    with pytest.raises(trio.WouldBlock):
        await asks.user(token())
    asks.no_wait = False
    await asks.user(token())
    asks.no_wait = True
    assert await asks.user(token()) is not None
    assert len(plane.questions) == 1


async def test_strangers_fill_no_memory(plane: ControlPlane, asks: CallOut) -> None:
    asks._strangers._max_found = 10
    await asks.user(token())
    for number in range(30):
        assert await status(asks, token(f"stranger {number}")) == 401
    assert asks.cached_count == 11
    assert await asks.user(token()) is not None
    assert len(plane.questions) == 31


async def test_forgetting_is_asking_anew(plane: ControlPlane, asks: CallOut) -> None:
    await asks.user(token())
    plane.users.clear()
    before = asks.changes.count
    asks.forget()
    assert asks.changes.count == before + 1
    assert await status(asks) == 401


async def test_an_answer_from_before_a_change_is_not_kept(plane: ControlPlane, asks: CallOut) -> None:
    """It was on its way when the control plane said that something changed: nobody who asks later gets it."""
    plane.gate = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks.user, token())
            await until(lambda: bool(plane.questions))
            asks.forget()
            plane.gate.set()
        plane.users.clear()
        assert await status(asks) == 401


async def test_a_wrong_secret_is_told(
    plane: ControlPlane, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    asks = CallOut(plane.url, b"another secret of 32 characters.")
    nursery.start_soon(asks.run)
    assert await status(asks) == 503
    assert plane.unsigned == 1
    assert "is the secret of --auth-secret-file the one that it has?" in caplog.text
    assert "another secret" not in caplog.text


async def test_a_replay_an_hour_later_is_not_signed(plane: ControlPlane, nursery: trio.Nursery) -> None:
    asks = CallOut(plane.url, SECRET, wall_seconds=lambda: time.time() - 3_600)
    nursery.start_soon(asks.run)
    assert await status(asks) == 503
    assert plane.unsigned == 1
