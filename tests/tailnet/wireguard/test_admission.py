"""Budgets of handshakes: free, then with cookies, never more than a bound."""

from random import Random

from tailnet.wireguard.admission import (
    COOKIE_REPLIES_PER_SECOND,
    FREE_BURST,
    FREE_PER_SECOND,
    PROVEN_PER_SECOND,
    SOURCE_PER_SECOND,
    SOURCE_REPLIES_PER_SECOND,
    Admission,
    Verdict,
)
from tailnet.wireguard.cookies import CookieJar

PUBLIC = b"p" * 32
BARE = b"m" * 116


def loaded() -> Admission:
    admission = Admission(PUBLIC, Random(1).randbytes, 0.0)
    for _ in range(int(FREE_BURST)):
        assert admission.judge(bytes(148), b"flood", 0.0) is Verdict.TAKE
    assert not admission.is_under_load(0.0)
    assert admission.judge(bytes(148), b"flood", 0.0) is Verdict.ASK
    assert admission.is_under_load(0.0)
    return admission


def proven(admission: Admission, source: bytes, now: float) -> bytes:
    """A message with a cookie that was given to this source."""
    jar = CookieJar(PUBLIC)
    assert jar.receive(admission.cookies.make_reply(jar.add_macs(BARE, now), 1, source, now), now)
    return jar.add_macs(BARE, now)


def test_under_load_a_cookie_opens_the_door() -> None:
    admission = loaded()
    message = proven(admission, b"alice", 0.1)
    assert admission.judge(message, b"mallory", 0.1) is Verdict.ASK, "it was Alice's"
    assert admission.judge(message, b"alice", 0.1) is Verdict.TAKE


def test_a_source_has_its_share() -> None:
    admission = loaded()
    message = proven(admission, b"alice", 0.1)
    verdicts = [admission.judge(message, b"alice", 0.1) for _ in range(SOURCE_PER_SECOND + 5)]
    assert verdicts == [Verdict.TAKE] * SOURCE_PER_SECOND + [Verdict.REFUSE] * 5
    assert admission.judge(proven(admission, b"bob", 0.1), b"bob", 0.1) is Verdict.TAKE
    verdicts = [admission.judge(bytes(148), b"mallory", 0.1) for _ in range(SOURCE_REPLIES_PER_SECOND + 5)]
    assert verdicts == [Verdict.ASK] * SOURCE_REPLIES_PER_SECOND + [Verdict.REFUSE] * 5
    assert admission.judge(bytes(148), b"mallory", 0.95) is Verdict.REFUSE
    assert admission.judge(message, b"alice", 0.95) is Verdict.REFUSE
    later = 1.0 + 0.1
    while admission.judge(bytes(148), b"flood", later) is Verdict.TAKE:
        pass
    assert admission.judge(message, b"alice", later) is Verdict.TAKE
    assert admission.judge(bytes(148), b"mallory", later) is Verdict.ASK


def test_load_ends_after_a_second() -> None:
    admission = loaded()
    assert admission.judge(bytes(148), b"alice", 1.1) is Verdict.TAKE
    assert not admission.is_under_load(1.1)


def test_a_flood_from_everywhere_is_bounded() -> None:
    """10,000 messages a second for 20 s, each from an address of its own that answers cookies."""
    admission, taken, asked = loaded(), 0, 0
    for step in range(200_000):
        now = step / 10_000
        source = step.to_bytes(4, "big")
        if admission.is_under_load(now) and step % 10 == 0:
            verdict = admission.judge(proven(admission, source, now), source, now)
        else:
            verdict = admission.judge(bytes(148), source, now)
        taken += verdict is Verdict.TAKE
        asked += verdict is Verdict.ASK
    assert taken <= 20 * (FREE_PER_SECOND + PROVEN_PER_SECOND) + FREE_BURST + PROVEN_PER_SECOND
    assert asked <= 21 * COOKIE_REPLIES_PER_SECOND
    assert len(admission._proven_shares) <= 2 * PROVEN_PER_SECOND
    assert len(admission._reply_shares) <= 2 * COOKIE_REPLIES_PER_SECOND
