"""Why two peers do not meet, asked of all replicas: who has them, and what it says (layer L3, a topic of sharing.py).

    /debug/why -> ask -> all others: hear -> run -> whoever asked: hear -> ask
Questions are `[0, number, [peer id, ...]]`, answers `[1, number, [peer id that is there, ...], sentences]`, in msgpack.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import msgpack
import trio

from derp.text import fit_lines_to_show, span
from tailnet.coordinator.explain import explain, explain_peer
from tailnet.errors import MalformedField
from tailnet.replica.messages import ReplicaID
from tailnet.services.replicas import Replicas
from tailnet.services.replicas_view import open_pair, others_of, outward
from tailnet.services.sharing import Shared
from tailnet.services.why import peer_id_of
from tailnet.types import PeerID

# A round trip, and a replica that is busy; who asks waits no longer for one that is stopped.
ASK_SECONDS: Final = 2.0
# Of all other replicas together; each costs a look at two peers, and people ask.
MAX_WAITING: Final = 64
# Sixty sentences; an explanation has ten, and a frame room for both.
MAX_ANSWER_CHARS: Final = 8_000
_QUESTION: Final = 0
_ANSWER: Final = 1


@dataclass(frozen=True, slots=True)
class _Answer:
    held: frozenset[bytes]
    sentences: str


@dataclass(slots=True)
class _Asked:
    """A question of ours.  `missing`: who has not answered yet."""

    missing: set[ReplicaID]
    answers: dict[ReplicaID, _Answer] = field(default_factory=dict)
    is_over: trio.Event = field(default_factory=trio.Event)


class WhyElsewhere(Shared):
    """Asks, and answers others.  One per replica."""

    topic = "why"

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._count = 0
        self._asked: dict[int, _Asked] = {}
        self._waiting, self._questions = trio.open_memory_channel[tuple[ReplicaID, int, list[PeerID]]](MAX_WAITING)

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        try:
            match msgpack.unpackb(payload):
                case [0, int(number), [_, *_] as ids, *_]:
                    with suppress(trio.WouldBlock):  # whoever asks sees that there was no answer
                        self._waiting.send_nowait((other, number, [PeerID(each) for each in ids[:2]]))
                case [1, int(number), list(held), str(sentences), *_] if number in self._asked:
                    asked = self._asked[number]
                    there = frozenset(each for each in held if isinstance(each, bytes))
                    asked.answers[other] = _Answer(there, sentences[:MAX_ANSWER_CHARS])
                    asked.missing.discard(other)
                    if not asked.missing:
                        asked.is_over.set()
        except (ValueError, TypeError, MalformedField):
            return  # of a later version

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async for other, number, ids in self._questions:
            held = [each for each in ids if self._replicas.coordinator.owner_of(each) == self._replicas.id]
            answer = msgpack.packb([_ANSWER, number, held, "\n".join(self._say(ids))[:MAX_ANSWER_CHARS]])
            self._replicas.tell(self.topic, answer, (other,))

    async def ask(self, asked: Mapping[str, str]) -> list[str]:
        """What replicas know of the peers of a query of /debug/why, a sentence each; empty where it names none."""
        texts = (asked.get(name, "") for name in ("from", "to", "key"))
        ids = [found for text in texts if (found := peer_id_of(text.strip().lower())) is not None][:2]
        if not ids:
            return []
        others = others_of(self._replicas)
        answers = await self._ask_all(ids, [each for each in others if open_pair(self._replicas, each) is not None])
        lines = ["What replicas know:", *(f"Here: {line}" for line in self._owners(ids)), *self._verdicts(ids, answers)]
        for other in others:
            name, answer = self._replicas.name_of(other), answers.get(other)
            if answer is not None:
                lines += [f"{name}: {line}" for line in fit_lines_to_show(answer.sentences).splitlines()]
            elif open_pair(self._replicas, other) is not None:
                lines.append(f"{name} has not answered within {ASK_SECONDS:g} s.")
            else:
                lines.append(f"{name} cannot be asked: {self._session(other)}.")
        return lines

    async def _ask_all(self, ids: Sequence[PeerID], others: Sequence[ReplicaID]) -> Mapping[ReplicaID, _Answer]:
        if not others:
            return {}
        self._count += 1
        number, asked = self._count, _Asked(set(others))
        self._asked[number] = asked
        try:
            self._replicas.tell(self.topic, msgpack.packb([_QUESTION, number, list(ids)]), others)
            with trio.move_on_after(ASK_SECONDS):
                await asked.is_over.wait()
        finally:
            del self._asked[number]
        return asked.answers

    def _verdicts(self, ids: Sequence[PeerID], answers: Mapping[ReplicaID, _Answer]) -> list[str]:
        """Where each of them is."""
        lines = []
        for peer_id in ids:
            places = [self._replicas.name_of(other) for other, answer in answers.items() if peer_id in answer.held]
            if self._replicas.coordinator.owner_of(peer_id) == self._replicas.id:
                places.append("this replica")
            if not places:
                lines.append(f"{peer_id} is connected to none of the {len(answers) + 1} replicas that could be asked.")
            elif len(places) > 1:
                lines.append(f"{peer_id} is connected at {' and '.join(places)}; the younger connection will stay.")
            else:
                lines.append(f"{peer_id} is connected at {places[0]}.")
        return lines

    def _say(self, ids: Sequence[PeerID]) -> list[str]:
        """What another replica is answered: nothing where none of them is here, or known."""
        core, now = self._replicas.coordinator, self._replicas.now
        owners = self._owners(ids)
        if not any(core.owner_of(each) == self._replicas.id for each in ids):
            return owners
        return owners + (explain(core, ids[0], ids[1], now) if len(ids) == 2 else explain_peer(core, ids[0], now))

    def _owners(self, ids: Sequence[PeerID]) -> list[str]:
        """Whose each of them is by what is known here: of peers elsewhere only those that share tunnels with ours."""
        core, lines = self._replicas.coordinator, []
        for peer_id in ids:
            owner, peer = core.owner_of(peer_id), core.peers.get(peer_id)
            if owner is None or peer is None:
                continue
            state = f"its connection has the epoch {peer.epoch}, and sent {peer.version} nodes"
            if owner == self._replicas.id:
                lines.append(f"{peer_id} is here; {state}.")
            else:
                where = f"{peer_id} is at replica {self._replicas.name_of(owner)}, as far as is known here"
                lines.append(f"{where}; {state}; {self._session(owner)}.")
        return lines

    def _session(self, other: ReplicaID) -> str:
        pair = open_pair(self._replicas, other)
        if pair is not None:
            since = span(self._replicas.now - pair.opened_at)
            return f"session {pair.session_count} with it stands since {since}"
        refused = self._replicas.cluster.refused.get(other)
        return f"there is no session with it: {refused or outward(self._replicas, other)}"
