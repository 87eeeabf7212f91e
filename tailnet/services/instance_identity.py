"""Sessions for agents that prove on which cloud instance they run.  Layer L3.

A proof (identity/) names an instance, the store the agents of that instance; the agent gets a further token of its own
(store/issued.py), since of its first one the store has the digest alone.  The same proof may be shown again: an agent
does so at each start, AWS's documents are the same for as long as an instance runs, and what a second answer opens the
first one opened.  Called by api/instance_identity.py.
"""

import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import trio

from derp.log import Rarely, and_more
from tailnet.errors import ConfigError
from tailnet.identity.anchors import Anchors, load_anchors
from tailnet.identity.aws import verify_aws
from tailnet.identity.azure import verify_azure
from tailnet.identity.google import verify_google
from tailnet.identity.instance import IdentityRefused, Instance
from tailnet.store.rows import InstanceAgent
from tailnet.store.store import Store
from tailnet.tokens import agent_token_digest

_log = logging.getLogger("tailnet.identity")

# Agents that somebody is told the names of.
_MAX_NAMED: Final = 20


class NoSuchInstance(IdentityRefused):
    """The proof holds, but no agent runs on that instance, or none that is called so."""

    def __init__(self, instance_id: str, name: str = "") -> None:
        super().__init__(
            f"nobody knows instance {instance_id!r:.80}" + (f" with an agent {name!r:.80}" if name else "")
        )
        self.instance_id = instance_id
        self.name = name


class SeveralAgents(IdentityRefused):
    """The proof holds, but several agents run on that instance: the one that asks has to say its name."""

    def __init__(self, instance_id: str, names: list[str]) -> None:
        super().__init__(f"instance {instance_id!r:.80} has {len(names)} agents, and none was named")
        self.instance_id = instance_id
        self.names = names


class InstanceIdentity:
    """Exchanges proofs for tokens.  Its methods raise IdentityRefused, of which the classes above and ClaimsUnreadable
    are kinds, and StoreError."""

    def __init__(
        self,
        store: Store,
        folder: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_token: Callable[[], UUID] = uuid4,
    ) -> None:
        """`folder`: whom proofs are believed, as identity/anchors.py has it; None: nobody.  Raises ConfigError."""
        self.anchors = load_anchors(folder) if folder is not None else Anchors()
        self.outcomes: Counter[str] = Counter()  # proofs, by issued, refused and unknown
        self._folder = folder
        self._rarely = Rarely(60.0)
        self._store = store
        self._clock = clock
        self._new_token = new_token
        # One at a time, beside the loop: a flood, of which the API's limits let some through (api/guards.py says what a
        # proof costs), takes turns with everything else instead of standing before it.
        self._turn = trio.CapacityLimiter(1)

    def reload(self) -> None:
        """Read the anchors again; those of before stay when they cannot be read."""
        if self._folder is None:
            return
        try:
            self.anchors = load_anchors(self._folder)
        except ConfigError as error:
            _log.error("! identity anchors: %s; those of before go on", error)

    async def aws(self, document: str, signature: str, name: str) -> UUID:
        """The token for a signed document; `name`: what the agent is called, "" if there is but one."""
        return await self._exchange(partial(verify_aws, document, signature), name)

    async def azure(self, signature: str, name: str) -> UUID:
        """The token for an attested document."""
        return await self._exchange(partial(verify_azure, signature), name)

    async def google(self, token: str, name: str) -> UUID:
        """The token for a Google identity token."""
        return await self._exchange(partial(verify_google, token), name)

    async def _exchange(self, verify: Callable[[Anchors, float], Instance], name: str) -> UUID:
        try:
            token = await self._issue(verify, name)
        except IdentityRefused as refused:
            is_unknown = isinstance(refused, NoSuchInstance | SeveralAgents)
            self.outcomes["unknown" if is_unknown else "refused"] += 1
            # Whoever has no proof, or one of a machine of his own, can cause this line.
            more = self._rarely.held_back(type(refused).__name__, trio.current_time())
            if more is not None:
                _log.info("- an instance's proof opens nothing: %s%s", refused, and_more(more))
            raise
        self.outcomes["issued"] += 1
        return token

    async def _issue(self, verify: Callable[[Anchors, float], Instance], name: str) -> UUID:
        now = self._clock()
        instance = await trio.to_thread.run_sync(verify, self.anchors, now.timestamp(), limiter=self._turn)
        found = await self._store.run(self._store.issued.agents_of_instance, instance.instance_id)
        agent = _choose(instance.instance_id, found, name)
        token = self._new_token()
        digest = agent_token_digest(token)
        if not await self._store.run(self._store.issued.issue_agent_token, agent.id, digest, now):
            raise NoSuchInstance(instance.instance_id)  # deleted a moment ago
        _log.info("+ agent %s (%s): a token for its instance %.80r", agent.id, agent.name, instance.instance_id)
        return token


def _choose(instance_id: str, found: list[InstanceAgent], name: str) -> InstanceAgent:
    """The agent that is meant, of an instance's agents, the newest first.

    Of one name in one workspace the newest counts, which a newer build put in the place of the others.  Several names
    are several agents of a machine, and nobody guesses which one asks.
    """
    if not found:
        raise NoSuchInstance(instance_id)
    current: dict[tuple[UUID, str], InstanceAgent] = {}
    for each in found:
        current.setdefault((each.workspace_id, each.name), each)
    if name:
        named = [each for each in current.values() if each.name == name]
        if not named:
            raise NoSuchInstance(instance_id, name)
        return named[0]
    names = sorted({each.name for each in current.values()})
    if len(names) > 1:
        raise SeveralAgents(instance_id, names[:_MAX_NAMED])
    return found[0]
