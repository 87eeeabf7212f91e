"""The bucket of replies of each peer."""

from tailnet.netstack.limits import Limits
from tailnet.netstack.replies import Replies
from tests.support.netsim import ADDRESSES

A, B = ADDRESSES


def test_a_burst_and_then_the_rate() -> None:
    replies = Replies(Limits(replies_burst=3, replies_per_second=2))
    assert [replies.may_reply(A, 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert replies.may_reply(B, 10.0), "another peer has its own"
    assert not replies.may_reply(A, 10.4)
    assert replies.may_reply(A, 10.5)
    assert not replies.may_reply(A, 10.5)
    assert [replies.may_reply(A, 100.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    replies = Replies(Limits(replies_burst=1, replies_per_second=2))
    assert replies.may_reply(A, 10.0)
    assert not replies.may_reply(A, 5.0)


def test_the_buckets_are_bounded() -> None:
    replies = Replies(Limits(max_reply_buckets=10))
    for number in range(50):
        replies.may_reply(number.to_bytes(16, "big"), 1.0)
    assert len(replies) == 10
