"""What users of clients are told: each cause in a relay on real links in virtual time, and that it is taken back."""

import pytest

from derp.config import Rate
from derp.protocol.messages import Health, Message
from derp.relay.advice import Cause
from derp.server.advisor import NOT_HERE_PACKETS
from tests.derp.server.bare_relay import Peer
from tests.derp.server.test_relay import TimedRelay
from tests.derp.server.world import DISCO


class AdvisedRelay(TimedRelay):
    """Its looks, every two seconds, begin at once; `run` would start them."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self.relay._look()


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages if isinstance(message, Health)]


def hears(peer: Peer) -> list[str]:
    return texts(peer.read())


def test_two_connections_of_a_key_hear_of_each_other() -> None:
    bare = AdvisedRelay()
    one = bare.connect()
    other = bare.connect(private=one.core._private)
    bare.wait(2)
    assert (hears(one), hears(other)) == ([], []), "who changes networks has two for a moment"
    bare.wait(1.5)
    for peer in (one, other):
        (text,) = hears(peer)
        assert text.startswith("this machine's key is in use by another connection too, from 127.0.0.1: ")
    other.wire.close()
    bare.wait(5)
    assert hears(one) == [""]
    bare.end()


def test_who_sends_more_than_he_may_is_told_once_for_as_long_as_it_lasts() -> None:
    bare = AdvisedRelay(rate=Rate(1000, 1))
    one, other = bare.connect(), bare.connect()
    said: list[str] = []
    one.send_packets(other, *[bytes(60_000)] * 2)
    for _ in range(20):
        bare.wait(1)
        said += hears(one)
    assert said == ["this relay lets this machine send 1,000 bytes a second; it sends more, which waits"]
    bare.wait(120)
    assert hears(one) == [""]
    assert hears(other) == []
    bare.end()


def test_who_reads_too_slowly_is_told_before_his_packets() -> None:
    bare = AdvisedRelay(tcp_write_timeout_seconds=0.0)
    one, slow = bare.connect(), bare.connect()
    while slow.client.queue is None:
        one.send_packets(slow, *[bytes(60_000)] * 4)
        bare.serve()
    for _ in range(10):
        one.send_packets(slow, bytes(1000))
        bare.wait(0.5)
    messages: list[Message] = []
    while slow.client.queue is not None:
        messages += slow.read()
        bare.serve()
    (text,) = texts(messages + slow.read())
    assert text.startswith("packets for this machine wait in the relay and are dropped there")
    bare.wait(10)
    assert hears(slow) == [""]
    assert hears(one) == []
    bare.end()


@pytest.mark.parametrize(("limit", "told"), [(0.25, [0.21]), (0.1, [0.15, 0.21, 0.09]), (10.0, [0.21])])
def test_who_waits_is_told_before_the_limit_drops_his_packets(limit: float, told: list[float]) -> None:
    with AdvisedRelay(queue_delay_seconds=limit) as bare:
        heard = []
        for seconds in (0.15, 0.21, 0.07, 0.09):
            slow = bare.connect()
            bare.relay.sessions.advisor.note_slow(slow.client, seconds)
            bare.wait(1)
            if hears(slow):
                heard.append(seconds)
        assert heard == told


@pytest.mark.parametrize(
    ("packet", "count", "is_told"),
    [
        (b"data", NOT_HERE_PACKETS, True),
        (b"data", NOT_HERE_PACKETS - 1, False),
        (DISCO, 100, False),  # a search for a peer is no loss; PeerGone answers it
    ],
)
def test_packets_to_nobody(packet: bytes, count: int, is_told: bool) -> None:
    bare = AdvisedRelay()
    one, gone = bare.connect(), bare.connect()
    key = gone.key
    gone.wire.close()
    bare.serve()
    assert key not in bare.router.routes
    one.send_packets(gone, *[packet] * count)
    bare.wait(2.5)
    said = hears(one)
    assert [text.split(":")[1] for text in said] == [" nobody with that key is connected here"] * is_told
    bare.wait(8)
    assert hears(one) == [""] * is_told
    bare.end()


def test_nobody_keeps_clients_that_have_left() -> None:
    bare = AdvisedRelay()
    one, gone = bare.connect(), bare.connect()
    gone.wire.close()
    bare.serve()
    one.send_packets(gone, *[b"data"] * 100)
    bare.serve()
    one.wire.close()
    bare.wait(3)
    assert bare.router.lost_by == {}
    assert len(bare.sessions.advisor._advice) == 0
    bare.end()


def test_all_clients_hear_of_a_broken_mesh_and_newcomers_too() -> None:
    bare = TimedRelay()
    peers = [bare.connect() for _ in range(3)]
    relay = bare.connect(mesh_key=bare.relay.config.mesh_key)
    advisor = bare.sessions.advisor
    advisor.tell_all("cut off")
    bare.wait(0.5)
    newcomer = bare.open()
    newcomer.read()
    bare.serve()
    peers.append(newcomer)
    assert [hears(peer) for peer in peers] == [["cut off"]] * 4
    assert hears(relay) == [], "a relay has no user"
    advisor.tell_all("")
    bare.wait(6)
    assert [hears(peer) for peer in peers] == [[""]] * 4
    assert hears(bare.connect()) == []
    assert bare.relay.sessions.advisor.totals() == {
        **{cause.value: 0 for cause in Cause},
        Cause.MESH_BROKEN.value: 4,
        "well": 4,
    }
    bare.end()


def test_many_clients_are_told_in_steps() -> None:
    bare = TimedRelay()
    peers = [bare.connect() for _ in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("derp.server.advisor._AT_ONCE", 2)
        bare.sessions.advisor.tell_all("cut off")
        bare.sessions.advisor.tell_all("cut off twice")  # before all have heard of it
        bare.wait(0.25)
    bare.wait(6)
    assert [hears(peer)[-1] for peer in peers] == ["cut off twice"] * 5
    bare.end()
