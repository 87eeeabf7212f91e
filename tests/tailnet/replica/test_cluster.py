"""One replica among others, whole: frames in, frames out, and what its own connections are told, in virtual time."""

from collections.abc import Iterable
from random import Random

import pytest

from tailnet.coordinator.messages import Deliver, Effect, Request
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy
from tailnet.replica.cluster import (
    DELAY_LIMITS_SECONDS,
    HOLD_SECONDS,
    MAX_DELAY_SECONDS,
    SLEPT_SECONDS,
    Cluster,
    Hint,
    SessionEnded,
    SessionOpened,
    Silenced,
)
from tailnet.replica.cluster_time import UNITS_PER_SECOND
from tailnet.replica.messages import Beat, Bye, Came, ReplicaID, Tell
from tailnet.replica.pair import BEAT_SECONDS, MAX_QUEUED_BYTES, SILENCE_SECONDS, SYNC_SECONDS, End
from tailnet.replica.proof import ClusterKey
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID
from tests.tailnet.coordinator.playbook import make_node, peer_id
from tests.tailnet.replica import test_pair as pair

A, C = peer_id("A"), peer_id("C")
ADDRESS = f"{A.address(TAILSCALE_SERVICE_PREFIX)}/128"


class Two:
    """Two replicas and what each tells its own."""

    def __init__(self) -> None:
        self.now = 100.0
        key = ClusterKey("home", bytes(32))
        self.clusters = [
            Cluster[str](
                ReplicaID(bytes([number]) * 8), f"r{number}", key, Random(number).randbytes, capabilities=number
            )
            for number in (1, 2)
        ]
        self.told: list[str] = []
        self.hints: list[Tell | Bye] = []
        self.sessions: list[str] = []
        self.frame_count = 0
        self.is_cut = False
        for one, other in ((0, 1), (1, 0)):
            self.clusters[one].link_opened(self.clusters[other].replica, self.now)
        self.settle()

    def take(self, effects: Iterable[Effect[str]]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                kinds = " ".join(update.kind.name for update in effect.updates)
                self.told += [f"{receiver} {kinds}" for receiver in effect.receivers]
            elif isinstance(effect, Hint):
                self.hints.append(effect.message)
            elif isinstance(effect, SessionOpened):
                self.sessions.append(f"{effect.replica} opened")
            elif isinstance(effect, SessionEnded):
                self.sessions.append(f"{effect.replica} ended: {effect.end.value}")
            elif isinstance(effect, Silenced):
                self.sessions.append(f"{effect.replica} silent")

    def core(self, number: int, effects: list[Effect[str]]) -> None:
        self.take(self.clusters[number].carry_out(effects, self.now))

    def settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for one, other in ((0, 1), (1, 0)):
                sender, receiver = self.clusters[one], self.clusters[other]
                for frame in sender.pair(receiver.replica).frames_to_send():
                    self.frame_count += 1
                    if not self.is_cut:
                        moved = True
                        self.take(receiver.receive_frame(sender.replica, frame, self.now))

    def run(self, seconds: float, only: int | None = None) -> None:
        until = self.now + seconds
        awake = [cluster for number, cluster in enumerate(self.clusters) if only in (None, number)]
        while True:
            dues = [at for cluster in awake if (at := cluster.next_timeout()) is not None]
            if not dues or min(dues) > until:
                break
            self.now = max(self.now, min(dues))
            for cluster in awake:
                at = cluster.next_timeout()
                if at is not None and at <= self.now:
                    self.take(cluster.handle_timeout(self.now))
            self.settle()
        self.now = until

    def meet(self) -> None:
        one, two = self.clusters[0].coordinator, self.clusters[1].coordinator
        self.core(0, one.handle_connect(C, ClientPolicy(A), "c", self.now))
        self.settle()
        self.core(0, one.handle_request("c", Request(node=make_node("c1"), add_tunnel=A), self.now))
        self.core(1, two.handle_connect(A, AgentPolicy(A), "a", self.now))
        self.settle()
        self.core(1, two.handle_request("a", Request(node=make_node("a1", [ADDRESS])), self.now))
        self.run(1.0)
        assert sorted(self.told) == ["a NODE", "c NODE"]
        self.told.clear()


def test_two_peers_meet_across_replicas() -> None:
    Two().meet()


def test_what_one_step_made_goes_in_one_frame() -> None:
    world = Two()
    world.meet()
    before = world.frame_count
    agent = world.clusters[1].coordinator
    for number in range(10):
        request = Request(node=make_node(f"a{number + 2}", [ADDRESS]))
        world.core(1, agent.handle_request("a", request, world.now))
    world.settle()
    assert world.frame_count == before + 1
    assert world.told == ["c NODE"], "of the nodes that waited for the end of the step, the newest counts"


def test_claims_of_a_storm_wait_for_each_other() -> None:
    world = Two()
    core = world.clusters[0].coordinator
    before = world.clusters[1].heard[Came]
    for number in range(100):
        peer = PeerID(bytes([number]) * 16)
        world.core(0, core.handle_connect(peer, ClientPolicy(A), f"b{number}", world.now))
        world.settle()
    world.run(2 * HOLD_SECONDS)
    assert world.clusters[1].heard[Came] - before <= 3


def test_silence_is_lost_and_heals() -> None:
    world = Two()
    world.meet()
    world.is_cut = True
    world.run(SILENCE_SECONDS + 1.5)
    assert sorted(world.told) == ["a LOST", "c LOST"]
    world.is_cut = False
    world.run(5)
    assert sorted(world.told) == ["a LOST", "a NODE", "c LOST", "c NODE"]


def test_who_slept_judges_nobody() -> None:
    world = Two()
    world.meet()
    sleeper = world.clusters[0]
    world.is_cut = True
    world.run(20, only=1)
    assert world.told == ["a LOST"]
    world.told.clear()
    due = sleeper.next_timeout()
    assert due is not None
    assert world.now - due > SLEPT_SECONDS
    world.take(sleeper.handle_timeout(world.now))
    assert sleeper.sleep_count == 1
    world.is_cut = False
    world.run(5)
    assert world.told == ["a NODE"], "to the client nothing happened"


def test_who_slept_judges_nobody_though_a_link_was_closed_meanwhile() -> None:
    world = Two()
    world.meet()
    sleeper, other = world.clusters
    world.now += SILENCE_SECONDS + 1
    world.take(sleeper.link_closed(other.replica, world.now))
    assert sleeper.sleep_count == 1
    world.take(sleeper.handle_timeout(world.now + SILENCE_SECONDS - 1))
    assert world.told == []
    world.take(sleeper.handle_timeout(world.now + SILENCE_SECONDS))
    assert world.told == ["c LOST"]


def test_the_first_connection_s_clock_is_told_with_its_claim() -> None:
    world = Two()
    ahead, other = world.clusters
    ahead.time.hear(3600 * UNITS_PER_SECOND, 1, 0, world.now)
    world.core(0, ahead.coordinator.handle_connect(C, ClientPolicy(A), "c", world.now))
    world.settle()
    assert other.time.read(world.now) == ahead.time.read(world.now)


def test_the_deaf_judge_nobody() -> None:
    world = Two()
    world.meet()
    for cluster in world.clusters:
        cluster.is_deaf = True
    world.is_cut = True
    world.run(60)
    assert world.told == []
    for cluster in world.clusters:
        cluster.is_deaf = False
    world.run(SILENCE_SECONDS + 1.5)
    assert sorted(world.told) == ["a LOST", "c LOST"]


def test_a_replica_that_left_is_forgotten() -> None:
    world = Two()
    world.meet()
    one, two = world.clusters
    world.take(one.forget(two.replica, world.now))
    assert world.told == ["c LOST"]
    assert two.replica not in one.pairs
    assert one.forget(two.replica, world.now) == []


def test_hints_reach_the_service() -> None:
    world = Two()
    for message in (Tell("revoked", b"7"), Bye(30)):
        assert world.clusters[0].tell(message, world.now) == []
    world.settle()
    assert world.hints == [Tell("revoked", b"7"), Bye(30)]


def test_whom_we_cannot_talk_to_is_kept_with_the_reason() -> None:
    cluster = Cluster[str](pair.B, "b", pair.KEY, Random(1).randbytes)
    cluster.link_opened(pair.A, 1.0)
    hello = pair.greeting(lowest_version=2, highest_version=4)
    assert cluster.receive_frame(pair.A, hello, 1.0) == []
    assert cluster.refused == {pair.A: "a speaks versions 2 to 4 of the replicas' protocol, and this one 1"}
    assert cluster.forget(pair.A, 2.0) == []
    assert cluster.refused == {}


def test_whoever_has_the_links_hears_of_sessions() -> None:
    world = Two()
    one, two = (cluster.replica for cluster in world.clusters)
    assert sorted(world.sessions) == [f"{one} opened", f"{two} opened"]
    world.sessions.clear()
    for cluster, other in zip(world.clusters, (two, one), strict=True):
        world.take(cluster.link_closed(other, world.now))
    assert world.sessions == [f"{two} ended: link closed", f"{one} ended: link closed"]
    world.sessions.clear()
    world.run(SILENCE_SECONDS + 1)
    assert sorted(world.sessions) == [f"{one} silent", f"{two} silent"]
    assert world.clusters[0].pair(two).ends[End.LINK] == 1


@pytest.mark.parametrize("is_closed", [True, False])
def test_who_said_goodbye_has_left(is_closed: bool) -> None:
    world = Two()
    one, two = world.clusters
    world.sessions.clear()
    world.take(one.tell(Bye(30), world.now))
    world.settle()
    world.is_cut = True
    if is_closed:
        world.take(two.link_closed(one.replica, world.now))
    world.run(SILENCE_SECONDS + 1, only=1)
    assert world.sessions == [f"{one.replica} ended: left", f"{one.replica} silent"]
    assert {end: count for end, count in two.pair(one.replica).ends.items() if count} == {End.LEFT: 1}


def test_a_session_that_nobody_reads_is_told_as_ended() -> None:
    world = Two()
    one, two = world.clusters
    hint = Tell("map", bytes(60_000))
    told = [effect for _ in range(MAX_QUEUED_BYTES // 60_000 + 1) for effect in one.tell(hint, world.now)]
    assert [type(effect) for effect in told] == [SessionEnded]
    assert one.pair(two.replica).ends[End.SLOW] == 1


def test_what_a_replica_says_of_itself_is_known_at_the_others() -> None:
    world = Two()
    world.meet()
    one, two = world.clusters
    two.load, two.map_digest = 250, b"digest"
    world.run(BEAT_SECONDS + 1)
    pair = one.pair(two.replica)
    assert pair.hello is not None
    assert (pair.hello.name, pair.hello.capabilities) == ("r2", 2)
    assert pair.status is not None
    assert (pair.status.peer_count, pair.status.load, pair.status.map_digest) == (1, 250, b"digest")
    behind = one.time.read(world.now) - pair.status.clock
    assert 0 <= behind <= 2 * BEAT_SECONDS * UNITS_PER_SECOND


def test_what_crosses_is_counted_and_nothing_has_to_be_mended() -> None:
    world = Two()
    one, two = world.clusters
    one.wall_clock, two.wall_clock = lambda: 1000.0, lambda: 1001.5
    world.meet()
    world.run(2 * SYNC_SECONDS[1])
    assert one.coordinator.mended == two.coordinator.mended == {"node": 0, "tunnel": 0, "peer": 0}
    assert one.coordinator.claims["taken"] == two.coordinator.claims["taken"] == 1
    assert one.coordinator.claims["known"] >= 2, "its node, and what comparisons say of it"
    assert one.sync_count >= 3, "at the beginning, and in each minute"
    assert sum(one.delays) == one.heard[Beat] >= 2 * SYNC_SECONDS[1] - 2
    assert one.delays[0] == sum(one.delays), "nothing takes time in this world"
    assert dict(one.heard) == {kind: count for kind, count in two.sent.items() if count}
    assert one.pair(two.replica).wall_ahead_seconds == 1.5
    assert two.pair(one.replica).wall_ahead_seconds == -1.5


def test_what_takes_long_is_late_by_the_beats() -> None:
    world = Two()
    one, two = world.clusters
    held = two.pair(one.replica)
    world.run(3.0)
    before = one.delays[:]
    # It waits in the queue behind whatever is there, as an update does.
    two.handle_timeout(world.now + BEAT_SECONDS)
    frames = held.frames_to_send()
    world.now += BEAT_SECONDS + 0.3
    for frame in frames:
        world.take(one.receive_frame(two.replica, frame, world.now))
    late = [after - count for count, after in zip(before, one.delays, strict=True)]
    assert late[DELAY_LIMITS_SECONDS.index(0.5)] == sum(late) == 1
    assert one.pair(two.replica).delay_seconds == pytest.approx(0.3)


def test_a_clock_that_is_ahead_is_not_taken_for_a_delay() -> None:
    world = Two()
    world.meet()
    one, two = world.clusters
    for number, end in ((0, "c"), (1, "a")):
        core = world.clusters[number].coordinator
        world.core(number, core.handle_disconnect(end, True, world.now))
    world.run(1.0)
    # Whoever knows the cluster's time does not follow one without peers: a machine that is up for longer, for example.
    two.time._offset += 86_400 * UNITS_PER_SECOND
    known, before = one.time.read(world.now), two.delay_seconds
    world.run(5.0)
    assert one.time.read(world.now) < known + 10 * UNITS_PER_SECOND
    assert two.delay_seconds == before
    assert two.pair(one.replica).delay_seconds is None
    # One beat that was on its way when the clock jumped must not outweigh all others.
    world.core(1, two.coordinator.handle_connect(A, AgentPolicy(A), "a", world.now))
    two._note_delay(two.pair(one.replica), 86_400.0)
    assert two.delay_seconds - before <= MAX_DELAY_SECONDS
    world.settle()
    world.run(5.0)
    assert two.pair(one.replica).delay_seconds == 0.0


def test_what_was_lost_unseen_is_mended_within_a_minute_and_counted() -> None:
    world = Two()
    world.meet()
    one, two = world.clusters
    world.run(SYNC_SECONDS[1])  # one comparison belongs to the beginning
    world.core(1, two.coordinator.handle_request("a", Request(node=make_node("a2", [ADDRESS])), world.now))
    two.pair(one.replica)._queue.clear()  # planted: no gap tells of it
    world.settle()
    assert world.told == []
    world.run(2 * SYNC_SECONDS[1])
    assert world.told == ["c NODE"]
    assert two.coordinator.mended == {"node": 1, "tunnel": 0, "peer": 0}
    assert one.coordinator.mended == {"node": 0, "tunnel": 0, "peer": 0}


def test_a_tunnel_that_was_removed_unseen_is_mended() -> None:
    world = Two()
    world.meet()
    one, two = world.clusters
    world.run(SYNC_SECONDS[1])
    world.core(0, one.coordinator.handle_disconnect("c", True, world.now))
    one.pair(two.replica)._queue.clear()  # planted, as above
    world.settle()
    world.run(2 * SYNC_SECONDS[1])
    assert world.told == ["a LOST"]
    assert two.coordinator.mended == {"node": 0, "tunnel": 1, "peer": 0}


def test_a_peer_that_left_unseen_is_mended() -> None:
    world = Two()
    world.meet()
    one, two = world.clusters
    world.run(SYNC_SECONDS[1])
    world.core(1, two.coordinator.handle_disconnect("a", True, world.now))
    two.pair(one.replica)._queue.clear()  # planted, as above
    world.settle()
    world.run(2 * SYNC_SECONDS[1])
    assert world.told == ["c LOST"]
    assert one.coordinator.mended == {"node": 0, "tunnel": 0, "peer": 1}


@pytest.mark.parametrize("leaver", [0, 1])
@pytest.mark.parametrize("asker", [0, 1])
def test_who_is_sent_away_is_lost_to_nobody_whoever_would_compare_now(asker: int, leaver: int) -> None:
    world = Two()
    world.meet()
    world.run(SYNC_SECONDS[1])  # one comparison belongs to the beginning
    leaving, other = world.clusters[leaver], world.clusters[1 - leaver]
    world.take(leaving.tell(Bye(30), world.now))
    world.settle()
    leaving.coordinator.handle_move("ca"[leaver], world.now)
    world.clusters[asker].pair(world.clusters[1 - asker].replica)._sync_at = world.now  # planted: it is due by chance
    world.take(world.clusters[asker].handle_timeout(world.now + BEAT_SECONDS))
    world.settle()
    assert world.told == []
    assert other.coordinator.mended == {"node": 0, "tunnel": 0, "peer": 0}
    assert leaving.replica in other.leaving
    world.take(other.forget(leaving.replica, world.now))
    assert not other.leaving


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("is_jump", [False, True])
def test_who_is_on_the_way_is_lost_by_no_comparison_of_the_one_that_leaves(is_jump: bool, is_closed: bool) -> None:
    world = Two()
    world.meet()
    leaving, other = world.clusters
    world.take(leaving.tell(Bye(30), world.now))
    leaving.coordinator.handle_move("c", world.now)
    if is_closed:
        world.core(0, leaving.coordinator.handle_close(world.now))
    if is_jump:
        world.core(0, leaving.coordinator.handle_clock_jump(world.now))
    else:  # a new session
        for cluster, end in ((leaving, other), (other, leaving)):
            world.take(cluster.link_closed(end.replica, world.now))
            cluster.link_opened(end.replica, world.now)
    world.settle()
    world.run(SILENCE_SECONDS - 1)
    assert leaving.pair(other.replica).is_open
    assert world.told == []


def test_one_replica_alone_waits_for_nothing() -> None:
    alone = Cluster[str](ReplicaID(bytes(8)), "r", ClusterKey("home", bytes(32)), Random(1).randbytes)
    core = alone.coordinator
    assert alone.carry_out(core.handle_connect(A, AgentPolicy(A), "a", 1.0), 1.0) == []
    assert alone.next_timeout() is None
