"""The replicas' rules as scripts: those of a coordinator's playbook with the number of a replica in front of each line.

    1 connect a A agent       what happens at replica 1; connections are lower case, peers upper case
      1 announces A           its effects, and below them those of whoever it told, until all is quiet
      2 -> 1 OPEN C A c1      a message; the node or "-" at its end
      1: a <- NODE C c1 ...   what a connection is told
    up 1 2 | cut 1 2          a session begins between the two, or all that they tell each other is lost
    sync 1 2                  1 compares what it knows of 2
    2 silent 1                2 has heard nothing of 1 for six seconds
    2 move a                  2 ends that connection because it leaves itself
    pass 30                   time passes, with what it brings
    2 jump 5                  the cluster's time is 5 s ahead of what 2 stamped with
    say 2 1 CAME A 5          2 tells 1 something of its own accord, with that epoch

A test runs the flush-left lines and compares the whole text.
"""

import textwrap
from collections import deque
from collections.abc import Iterable
from itertools import combinations

from tailnet.coordinator.messages import Effect, Kind, Outward
from tailnet.coordinator.nodes import Node
from tailnet.replica.cluster_time import ClusterTime
from tailnet.replica.core import SharedCoordinator
from tailnet.replica.messages import (
    Announce,
    Ask,
    Came,
    Claim,
    Gone,
    NodeIs,
    Open,
    PeerMessage,
    Publish,
    Ready,
    ReplicaID,
    Shut,
    Sync,
    Synced,
    Who,
    Withdraw,
)
from tests.tailnet.coordinator.playbook import Playbook, make_node, peer_id


def replica_id(name: str) -> ReplicaID:
    return ReplicaID(name.encode() * 8)


class Replicas:
    """Some coordinators that are told at once what the others say."""

    def __init__(self, names: str = "12") -> None:
        self.now = 100.0
        self.books = {name: Playbook() for name in names}
        self.cores: dict[str, SharedCoordinator[str]] = {}
        for name, book in self.books.items():
            core: SharedCoordinator[str] = SharedCoordinator(replica_id(name), ClusterTime(), lambda: 0.5)
            self.cores[name] = book.core = core
        self.together = {frozenset(pair) for pair in combinations(names, 2)}
        self.cut_at: dict[frozenset[str], float] = {}
        self.queue: deque[tuple[str, str, PeerMessage]] = deque()

    def run(self, script: str) -> str:
        """Carry out the flush-left lines; the whole text as it should have been."""
        self.lines: list[str] = []
        for line in textwrap.dedent(script).strip().splitlines():
            if line and not line.startswith(" "):
                self.lines.append(line)
                self.step(line)
        return "\n".join(self.lines)

    def step(self, line: str) -> None:
        self.now += 1
        first, *words = line.split()
        if first == "cut":
            self.together.discard(frozenset(words))
            self.cut_at[frozenset(words)] = self.now
        elif first == "up":
            self._up(words[0], words[1])
        elif first == "sync":
            self._take(words[0], self.cores[words[0]].handle_sync_due(replica_id(words[1])))
        elif first == "pass":
            self._pass(float(words[0]))
        elif first == "say":
            self._say(*words)
        elif words[0] == "silent":
            self._take(first, self.cores[first].handle_replica_down(replica_id(words[1]), self.now))
        elif words[0] == "move":
            self.cores[first].handle_move(words[1], self.now)
        elif words[0] == "jump":
            time = self.cores[first]._time
            time._offset += int(words[1]) * 4096 * 1000
            self._take(first, self.cores[first].handle_clock_jump(self.now))
        else:
            book = self.books[first]
            book.now = self.now - 1
            self._take(first, book.step(line.partition(" ")[2]))
        self.settle()

    def settle(self) -> None:
        while self.queue:
            sender, receiver, message = self.queue.popleft()
            if frozenset((sender, receiver)) not in self.together:
                continue
            self.lines.append(f"  {sender} -> {receiver} {show_message(message)}")
            self._take(receiver, self.cores[receiver].handle_message(replica_id(sender), message, self.now))
        for core in self.cores.values():
            core.check()

    def _up(self, one: str, other: str) -> None:
        pair = frozenset((one, other))
        self.together.add(pair)
        since = self.cut_at.get(pair)
        for name, peer in ((one, other), (other, one)):
            self._take(name, self.cores[name].handle_replica_up(replica_id(peer), since, self.now))

    def _pass(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            dues = {name: due for name, core in self.cores.items() if (due := core.next_timeout()) is not None}
            first = min(dues, key=lambda name: dues[name], default=None)
            if first is None or dues[first] > until:
                break
            self.now = max(self.now, dues[first])
            self._take(first, self.cores[first].handle_timeout(self.now))
            self.settle()
        self.now = until

    def _say(self, sender: str, receiver: str, kind: str, name: str, epoch: str) -> None:
        peer = peer_id(name)
        messages: dict[str, PeerMessage] = {
            "CAME": Came((Claim(peer, int(epoch)),)),
            "NODE": NodeIs(peer, int(epoch), 1, make_node("old")),
            "GONE": Gone(peer, int(epoch), Kind.LOST, "lost"),
        }
        self.queue.append((sender, receiver, messages[kind]))

    def _take(self, name: str, effects: list[Effect[str]]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                to = [other for other in self.cores if other != name and replica_id(other) in effect.replicas]
                self.queue += [(name, other, message) for other in to for message in effect.messages]
            elif isinstance(effect, Announce):
                self.lines.append(f"  {name} announces {letters(claim.peer_id for claim in effect.claims)}")
                self._tell_all(name, Came(effect.claims))
            elif isinstance(effect, Withdraw):
                self.lines.append(f"  {name} withdraws {letters((effect.gone.peer_id,))}")
                self._tell_all(name, effect.gone)
            elif isinstance(effect, Ask):
                self.lines.append(f"  {name} asks {letters(effect.peer_ids)}")
                self._tell_all(name, Who(effect.peer_ids))
            else:
                assert not isinstance(effect, Outward)
                self.lines += [f"  {name}: {told}" for told in self.books[name]._show(effect)]

    def _tell_all(self, name: str, message: PeerMessage) -> None:
        self.queue += [(name, other, message) for other in self.cores if other != name]


def letters(peer_ids: Iterable[bytes]) -> str:
    return " ".join(peer[:1].decode() for peer in peer_ids)


def shown(node: Node | None) -> str:
    return "-" if node is None else node.raw.decode()


def show_message(message: PeerMessage) -> str:
    match message:
        case Came(claims):
            return f"CAME {letters(claim.peer_id for claim in claims)}"
        case Who(peer_ids):
            return f"WHO {letters(peer_ids)}"
        case Open():
            return f"OPEN {letters((message.src, message.dst))} {shown(message.node)}"
        case Shut():
            lost = " LOST" if message.kind is Kind.LOST else ""
            return f"SHUT {letters((message.src, message.dst))}{lost}"
        case NodeIs():
            return f"NODE {letters((message.peer_id,))} {shown(message.node)}"
        case Gone():
            absent = " is not here" if message.epoch == 0 else f" {message.kind.name}"
            return f"GONE {letters((message.peer_id,))}{absent}"
        case Ready():
            return f"READY {letters((message.src, *message.dsts))}"
        case Sync():
            wants = "".join(f" {letters((want.src, want.dst))}" for want in message.wants)
            known = "".join(f" {letters((each.peer_id,))}" for each in message.known)
            return f"SYNC{wants}{known and f' known{known}'}{' last' * message.last}"
        case Synced():
            return "SYNCED"
