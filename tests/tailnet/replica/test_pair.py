"""Two ends of a session over a carrier that may lose, repeat, hold and forge, in virtual time."""

from collections.abc import Callable
from random import Random

import pytest

from tailnet.errors import LocalProtocolError
from tailnet.replica.codec import MAX_FRAME_BYTES, decode_frame, encode_frame, encode_message
from tailnet.replica.messages import Beat, Hello, Message, ReplicaID, Tell
from tailnet.replica.pair import (
    MAX_QUEUED_BYTES,
    SILENCE_SECONDS,
    VERSION,
    Ended,
    Heard,
    Opened,
    Own,
    Pair,
    PairEvent,
    Refused,
    Silent,
    Status,
    SyncDue,
)
from tailnet.replica.proof import ClusterKey, FrameKey

KEY, STRANGER = ClusterKey("home", bytes(32)), FrameKey(b"k" * 32)
A, B = ReplicaID(b"A" * 8), ReplicaID(b"B" * 8)


def own(replica: ReplicaID, key: ClusterKey = KEY) -> Own:
    return Own(replica, f"name {replica}", key, lambda now: Status(int(now), 0), Random(replica).randbytes)


class World:
    """Two pairs and the frames between them."""

    def __init__(self, keys: tuple[ClusterKey, ClusterKey] = (KEY, KEY)) -> None:
        self.now = 100.0
        self.a, self.b = Pair(own(A, keys[0]), B), Pair(own(B, keys[1]), A)
        self.events: dict[ReplicaID, list[PairEvent]] = {A: [], B: []}
        self.carry: Callable[[ReplicaID, list[bytes]], list[bytes]] = lambda sender, frames: frames
        self.is_up = False

    def up(self, binding_a: bytes = b"", binding_b: bytes = b"") -> None:
        self.is_up = True
        self.a.link_opened(self.now, binding_a)
        self.b.link_opened(self.now, binding_b)
        self.settle()

    def down(self) -> None:
        self.is_up = False
        self.events[A] += self.a.link_closed(self.now)
        self.events[B] += self.b.link_closed(self.now)

    def settle(self) -> None:
        """Carry frames until nobody has any."""
        while self.is_up:
            moved = False
            for sender, pair, other in ((A, self.a, self.b), (B, self.b, self.a)):
                for frame in self.carry(sender, pair.frames_to_send()):
                    moved = True
                    self.events[B if sender == A else A] += other.receive_frame(frame, self.now)
            if not moved:
                return

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            dues = [due for pair in (self.a, self.b) if (due := pair.next_timeout()) is not None]
            if not dues or min(dues) > until:
                break
            self.now = max(self.now, min(dues))
            for replica, pair in ((A, self.a), (B, self.b)):
                self.events[replica] += pair.handle_timeout(self.now)
            self.settle()
        self.now = until

    def send(self, text: str) -> None:
        self.events[A] += self.a.send(encode_message(Tell(text, b"")), self.now)

    def take(self, replica: ReplicaID) -> list[PairEvent]:
        events, self.events[replica] = self.events[replica], []
        return [event for event in events if not is_beat(event)]

    def heard(self) -> list[str]:
        """The topics that B heard."""
        messages = [message for event in self.events[B] if isinstance(event, Heard) for message in event.messages]
        return [message.topic for message in messages if isinstance(message, Tell)]


def is_beat(event: PairEvent) -> bool:
    return isinstance(event, Heard) and all(isinstance(message, Beat) for message in event.messages)


def kinds(events: list[PairEvent]) -> list[type]:
    return [type(event) for event in events]


def opened() -> World:
    world = World()
    world.up()
    assert kinds(world.take(A)) == kinds(world.take(B)) == [Opened]
    return world


def test_a_session_opens_and_carries_in_order() -> None:
    world = opened()
    for text in "xyz":
        world.send(text)
    frames = world.a.frames_to_send()
    assert len(frames) == 1, "what one step made goes in one frame"
    world.events[B] += world.b.receive_frame(frames[0], world.now)
    assert world.heard() == ["x", "y", "z"]


def test_a_quiet_session_stays_for_an_hour_and_compares_each_minute() -> None:
    world = opened()
    world.run(3600)
    events = world.take(A)
    assert set(kinds(events)) == {SyncDue}
    assert 3600 / 75 - 1 <= len(events) <= 3600 / 45
    assert world.a.session_count == world.b.session_count == 1


def test_what_is_queued_without_a_session_is_dropped() -> None:
    world = World()
    world.send("early")
    world.up()
    assert world.heard() == []
    assert world.a.queued_bytes == 0


@pytest.mark.parametrize("what", ["lost", "repeated", "swapped"])
def test_a_fault_of_the_carrier_ends_the_session_and_the_next_opens(what: str) -> None:
    world = opened()
    frames: list[bytes] = []
    for text in "xyz":
        world.send(text)
        frames += world.a.frames_to_send()
    x, y, z = frames
    for frame in {"lost": [x, z], "repeated": [x, x, y], "swapped": [y, x]}[what]:
        world.events[B] += world.b.receive_frame(frame, world.now)
    assert Ended in kinds(world.take(B))
    assert not world.b.is_open
    world.run(1.0)
    assert kinds(world.take(A)) == [Ended, Opened], "the other end learns it from the Hello"
    assert kinds(world.take(B)) == [Opened]
    world.send("again")
    world.settle()
    assert world.heard() == ["again"]


def test_a_loss_with_nothing_behind_it_is_seen_at_the_next_beat() -> None:
    world = opened()
    world.send("lost")
    world.a.frames_to_send()
    world.run(1.0)
    assert kinds(world.take(B))[0] is Ended


def test_hellos_that_come_twice_change_nothing() -> None:
    world = World()
    world.carry = lambda sender, frames: [frame for frame in frames for _ in range(2)] if world.now < 101 else frames
    world.up()
    assert kinds(world.take(A)) == kinds(world.take(B)) == [Opened]
    world.run(0.9)
    assert world.a.session_count == 1


@pytest.mark.parametrize("lost", range(6))
def test_a_session_opens_whichever_hello_is_lost(lost: int) -> None:
    world = World()
    number = 0

    def carry(sender: ReplicaID, frames: list[bytes]) -> list[bytes]:
        nonlocal number
        number += len(frames)
        return [frame for at, frame in enumerate(frames, number - len(frames)) if at != lost]

    world.carry = carry
    world.up()
    world.run(5.0)
    assert world.a.is_open
    assert world.b.is_open
    world.send("now")
    world.settle()
    assert world.heard() == ["now"]


def test_silence_is_told_once_and_the_other_may_return() -> None:
    world = opened()
    world.carry = lambda sender, frames: [] if sender == A else frames
    world.run(SILENCE_SECONDS - 0.1)
    assert world.take(B) == []
    world.run(0.2)
    assert kinds(world.take(B)) == [Ended, Silent]
    world.run(60)
    assert world.take(B) == []
    assert not world.b.is_present
    world.carry = lambda sender, frames: frames
    world.run(2)
    assert kinds(world.take(B)) == [Opened]


def test_a_link_that_returns_in_time_is_no_silence() -> None:
    world = opened()
    world.down()
    world.run(SILENCE_SECONDS - 0.5)
    world.up()
    assert kinds(world.take(B)) == [Ended, Opened]


def test_a_link_that_does_not_return_is_silence() -> None:
    world = opened()
    world.down()
    world.run(SILENCE_SECONDS)
    assert kinds(world.take(A)) == [Ended, Silent]


def test_who_is_excused_has_its_time_anew() -> None:
    world = opened()
    world.down()
    world.run(5.9)
    world.a.excuse(world.now)
    world.run(5.9)
    assert kinds(world.take(A)) == [Ended]
    assert kinds(world.take(B)) == [Ended, Silent]


def test_frames_of_the_session_before_are_strays() -> None:
    world = opened()
    world.send("late")
    (late,) = world.a.frames_to_send()
    world.down()
    world.up()
    world.take(B)
    assert world.b.receive_frame(late, world.now) == []
    assert world.b.stray_count == 1
    assert world.b.is_open


@pytest.mark.parametrize(
    "frame", [b"", b"x" * 40, STRANGER.seal(encode_frame(1, [])), STRANGER.seal(encode_frame(0, [])), bytes(70_000)]
)
def test_what_a_stranger_says_is_counted_and_changes_nothing(frame: bytes) -> None:
    world = opened()
    assert world.b.receive_frame(frame, world.now) == []
    assert world.b.stray_count == 1
    world.send("x")
    world.settle()
    assert world.heard() == ["x"]


@pytest.mark.parametrize(
    "keys", [(KEY, ClusterKey("home", b"1" * 32)), (KEY, ClusterKey("away", bytes(32)))], ids=["key", "cluster"]
)
def test_another_cluster_gets_no_answer(keys: tuple[ClusterKey, ClusterKey]) -> None:
    world = World(keys)
    world.up()
    world.run(30)
    assert world.take(A) == world.take(B) == []
    assert world.a.stray_count > 20


def test_ends_of_two_links_have_no_session_together() -> None:
    """Somebody in the middle who ends both TLS sessions carries Hellos, and nothing else."""
    world = World()
    world.up(b"exporter 1", b"exporter 2")
    world.run(30)
    assert set(kinds(world.take(A))) <= {Opened, Ended, Silent}
    assert world.heard() == []
    assert world.a.stray_count > 0


def greeting(**changes: object) -> bytes:
    fields = {
        "lowest_version": VERSION,
        "highest_version": VERSION,
        "cluster": "home",
        "replica": A,
        "name": "a",
        "clock": 1,
        "peer_count": 1,
        "capabilities": 0,
        "nonce": bytes(16),
        "echo": b"",
    }
    hello = Hello(**{**fields, **changes})  # type: ignore[arg-type]  # a table of all kinds
    return KEY.greeting_key(A).seal(encode_frame(0, [encode_message(hello)]))


def test_versions_without_a_common_one() -> None:
    world = World()
    world.b.link_opened(world.now)
    (refused,) = world.b.receive_frame(greeting(lowest_version=VERSION + 1, highest_version=VERSION + 3), world.now)
    assert isinstance(refused, Refused)
    assert refused.reason == f"a speaks versions 2 to 4 of the replicas' protocol, and this one {VERSION}"


@pytest.mark.parametrize("changes", [{"replica": B}, {"nonce": b"short"}])
def test_a_hello_of_somebody_else(changes: dict[str, object]) -> None:
    world = World()
    world.b.link_opened(world.now)
    assert kinds(world.b.receive_frame(greeting(**changes), world.now)) == [Refused]


def test_malformed_frames_of_a_session_end_it() -> None:
    for body in (encode_frame(1, [b"\x90"]), encode_frame(1, [encode_message(hello_of(greeting()))])):
        world = opened()
        session = world.a._session
        assert session is not None
        assert kinds(world.b.receive_frame(session.sent_key.seal(body), world.now)) == [Ended]


def hello_of(frame: bytes) -> Message:
    return decode_frame(frame[:-16])[1][0]


def test_frames_stay_small_and_keep_the_order() -> None:
    world = opened()
    for number in range(300):
        world.events[A] += world.a.send(encode_message(Tell(str(number), bytes(1000))), world.now)
    frames = world.a.frames_to_send(limit_bytes=100_000)
    assert 1 < len(frames) <= 3
    frames += world.a.frames_to_send()
    assert max(map(len, frames)) <= MAX_FRAME_BYTES
    for frame in frames:
        world.events[B] += world.b.receive_frame(frame, world.now)
    assert world.heard() == [str(number) for number in range(300)]
    assert world.a.queued_bytes == 0


def test_a_newer_node_takes_the_place_of_one_that_waits() -> None:
    world = opened()
    for text in ("1", "2"):
        world.a.send(encode_message(Tell(text, b"")), world.now, "peer")
        world.send(f"between {text}")
    world.settle()
    assert world.heard() == ["between 1", "2", "between 2"]
    assert world.a.queued_bytes == 0


def test_a_replica_that_reads_nothing_loses_the_session_and_not_our_memory() -> None:
    world = opened()
    piece = encode_message(Tell("x", bytes(60_000)))
    events: list[PairEvent] = []
    for _ in range(MAX_QUEUED_BYTES // len(piece) + 1):
        assert events == []
        events = world.a.send(piece, world.now)
    assert kinds(events) == [Ended]
    assert world.a.queued_bytes == 0
    world.run(1)
    assert world.a.is_open


def test_what_was_acknowledged_is_known_when_they_meet_again() -> None:
    world = World()
    world.up()
    (first,) = world.take(B)
    assert isinstance(first, Opened)
    assert first.since is None
    world.run(10.5)
    world.down()
    world.run(3)
    world.take(A)
    world.up()
    (again,) = world.take(A)
    assert isinstance(again, Opened)
    assert again.since is not None
    # A beat each second, and its acknowledgement in the other's next.
    assert world.now - 3 - 2.5 <= again.since <= world.now - 3


def test_what_still_waited_for_room_counts_as_unacknowledged() -> None:
    world = opened()
    world.run(3)
    noted = world.now
    for _ in range(3):
        world.a.send(encode_message(Tell("x", bytes(60_000))), world.now)
    world.a.handle_timeout(world.now + 1)
    for frame in world.a.frames_to_send(limit_bytes=1):
        world.b.receive_frame(frame, world.now)
    world.b.handle_timeout(world.now + 1)
    for frame in world.b.frames_to_send():
        world.a.receive_frame(frame, world.now)
    world.down()
    world.up()
    again = next(event for event in world.take(A) if isinstance(event, Opened))
    assert again.since is not None
    assert again.since <= noted


def test_a_link_is_opened_once_and_frames_come_over_one() -> None:
    pair = Pair(own(A), B)
    with pytest.raises(LocalProtocolError, match="no link"):
        pair.receive_frame(b"x", 1.0)
    pair.link_opened(1.0)
    with pytest.raises(LocalProtocolError, match="already"):
        pair.link_opened(1.0)


@pytest.mark.parametrize("seed", range(40))
def test_no_carrier_makes_it_hear_wrong(seed: int) -> None:
    """Whatever is lost, repeated or late: within a session B hears an unbroken run, and when it is quiet they meet."""
    random = Random(seed)
    world = World()
    held: list[tuple[ReplicaID, bytes]] = []

    def carry(sender: ReplicaID, frames: list[bytes]) -> list[bytes]:
        carried: list[bytes] = []
        for frame in frames:
            fault = random.random()
            if fault < 0.05:
                continue
            carried += [frame, frame] if fault < 0.10 else [frame]
            if fault > 0.97:
                held.append((sender, frame))
        if held and random.random() < 0.3:
            late = [frame for one, frame in held if one == sender]
            held[:] = [(one, frame) for one, frame in held if one != sender]
            carried += late
        return carried

    world.carry = carry
    world.up()
    count = 0
    for _ in range(200):
        world.run(random.random())
        if world.a.is_open:
            world.send(str(count))
            count += 1
        world.settle()
    runs: list[list[int]] = [[]]
    for event in world.take(B):
        if isinstance(event, Opened):
            runs.append([])
        elif isinstance(event, Heard):
            runs[-1] += [int(message.topic) for message in event.messages if isinstance(message, Tell)]
    for run in runs:
        assert run == list(range(run[0], run[0] + len(run))) if run else True
    heard = [number for run in runs for number in run]
    assert heard == sorted(set(heard)), "never twice, never back"
    assert len(heard) > count / 4
    world.carry = lambda sender, frames: frames
    world.run(10)
    assert world.a.is_open
    assert world.b.is_open
