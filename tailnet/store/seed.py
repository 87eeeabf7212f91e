"""Seeds: users, agents and grants from a JSON file, with ids and plain tokens given by it (layer L2).

`parse_seed` checks the text by itself and finds every mistake with its place.  A workspace is what its agents say of
it. Called by cli/admin.py and `tailnet serve --dev`.  Next hop: importing.py writes a seed into the store.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from typing import Any, Final, TypeVar
from uuid import UUID

from derp.json_numbers import parse_int
from derp.text import fit_to_show
from tailnet.errors import SeedError
from tailnet.store.definitions import KINDS, NONE, SeedDefinitions, read_definitions
from tailnet.store.problems import Problems, kind
from tailnet.store.rows import Right, Role, as_granted
from tailnet.tokens import MAX_TOKEN_CHARS, PresentedToken, agent_token_digest, can_be_sent, parse_user_token
from tailnet.types import PeerID

E = TypeVar("E", bound=Enum)

# 10,000 agents are 3 MB.  The bound keeps a wrong path (a disk image, a log) from filling the memory.
MAX_SEED_BYTES: Final = 256 * 1024 * 1024
MAX_NAME_CHARS: Final = 256
# 20 random letters and digits are 119 bits.  Shorter tokens work, but whoever reads the store could guess them.
SHORT_TOKEN_CHARS: Final = 20

_KEYS: Final = ("users", "agents", "grants")
_USER_KEYS: Final = ("id", "username", "token", "role")
_GRANT_KEYS: Final = ("workspace_id", "user_id", "rights")
_AGENT_KEYS: Final = ("id", "token", "name", "workspace_id", "workspace_name", "owner_id", "instance_id", *KINDS)


@dataclass(frozen=True, slots=True)
class SeedUser:
    id: UUID
    username: str
    token: PresentedToken
    place: str
    role: Role | None = None  # None: as it is, and of a new one that of everybody


@dataclass(frozen=True, slots=True)
class SeedAgent:
    id: PeerID
    token_digest: bytes = field(repr=False)
    name: str
    workspace_id: UUID
    workspace_name: str
    owner_id: UUID
    place: str
    definitions: SeedDefinitions = NONE
    instance_id: str | None = None  # None: what the store has stays


@dataclass(frozen=True, slots=True)
class SeedGrant:
    """All rights of one user on one workspace of somebody else; none: they are taken away."""

    workspace_id: UUID
    user_id: UUID
    rights: frozenset[Right]
    place: str


@dataclass(frozen=True, slots=True)
class Seed:
    """A file without mistakes of its own.  `warnings` are sentences for the operator."""

    users: Sequence[SeedUser]
    agents: Sequence[SeedAgent]
    grants: Sequence[SeedGrant] = ()
    warnings: Sequence[str] = ()


def parse_seed(text: str | bytes, name: str = "seed") -> Seed:
    """Read a seed; `name` is how problems call the file.  Raises SeedError with every mistake, up to twenty."""
    document = _load(text, name)
    reader = _Reader(name)
    reader.known(document, "", _KEYS)
    seed_users = [user for user in map(reader.user, *reader.items(document, "users")) if user is not None]
    seed_agents = [agent for agent in map(reader.agent, *reader.items(document, "agents")) if agent is not None]
    grants = [grant for grant in map(reader.grant, *reader.items(document, "grants")) if grant is not None]
    reader.unique(seed_users, lambda user: user.id, "id")
    reader.unique(seed_users, lambda user: user.username, "username")
    reader.unique(seed_users, lambda user: user.token.id, "token")
    reader.unique(seed_agents, lambda agent: agent.id, "id")
    reader.unique(seed_agents, lambda agent: agent.token_digest, "token")
    reader.unique(grants, lambda grant: (grant.workspace_id, grant.user_id), "user_id")
    for sort in ("apps", "scripts"):
        items = [item for agent in seed_agents for item in getattr(agent.definitions, sort) or ()]
        reader.unique(items, lambda item: item.key, "id")
    reader.workspaces_agree(seed_agents)
    reader.problems.raise_if_any()
    if reader.short_tokens:
        reader.warnings.append(
            f"{name}: {reader.short_tokens} user tokens are shorter than {SHORT_TOKEN_CHARS} characters: "
            "whoever reads the store could guess them"
        )
    return Seed(seed_users, seed_agents, grants, reader.warnings)


def _load(text: str | bytes, name: str) -> Mapping[str, Any]:
    if len(text) > MAX_SEED_BYTES:
        raise SeedError([f"{name}: has more than {MAX_SEED_BYTES // 2**20} MiB: is it the right file? If so, split it"])
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_int=parse_int)
    except _DuplicateKeyError as error:
        raise SeedError([f"{name}: an object has the key {error.args[0]!r:.80} twice: remove one"]) from None
    except json.JSONDecodeError as error:
        raise SeedError([f"{name}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"]) from None
    except UnicodeDecodeError as error:
        raise SeedError([f"{name}: byte {error.start}: not UTF-8 text"]) from None
    except RecursionError:
        raise SeedError([f"{name}: nested too deeply: it should be an object of two lists"]) from None
    if not isinstance(document, dict):
        raise SeedError([f'{name}: wants an object {{"users": [...], "agents": [...]}}, got {kind(document)}'])
    return document


class _DuplicateKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON lets a key appear twice and the last one win: in a file of tokens that is never meant.
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in names if names.count(key) > 1))
    return value


class _Reader:
    """Checks one file and gathers what is wrong with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems = Problems(name)
        self.warnings: list[str] = []
        self.short_tokens = 0

    def items(self, document: Mapping[str, Any], key: str) -> tuple[list[Any], list[str]]:
        """The list under `key` and the place of each item."""
        value = document.get(key, [])
        if not isinstance(value, list):
            self.problems.add(key, f"wants a list, got {kind(value)}")
            value = []
        return value, [f"{key}[{index}]" for index in range(len(value))]

    def known(self, value: Mapping[str, Any], place: str, keys: Sequence[str]) -> None:
        for key in value:
            # An error, not a warning: a list under a misspelt key would be nobody, imported without a word.
            if key not in keys:
                near = get_close_matches(key[:100], keys, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                here = fit_to_show(f"{place}.{key}" if place else key)
                self.problems.add(f"{here:.120}", f"unknown key: known are {', '.join(keys)}{hint}")

    def user(self, value: object, place: str) -> SeedUser | None:
        before = len(self.problems)
        if not self._is_object(value, place, _USER_KEYS):
            return None
        assert isinstance(value, dict)
        user_id = self._uuid(value, "id", place)
        username = self._text(value, "username", place, MAX_NAME_CHARS)
        token = self._text(value, "token", place, MAX_TOKEN_CHARS)
        # Headers and cookies carry nothing else, so such a token could never be presented.
        if token and not can_be_sent(token):
            self.problems.add(
                f"{place}.token", "wants visible ASCII characters without blanks, quotes, commas, semicolons"
            )
        role = self._word(value["role"], f"{place}.role", Role) if "role" in value else None
        if len(self.problems) > before:
            return None
        self.short_tokens += len(token) < SHORT_TOKEN_CHARS
        return SeedUser(user_id, username, parse_user_token(token), place, role)

    def agent(self, value: object, place: str) -> SeedAgent | None:
        before = len(self.problems)
        if not self._is_object(value, place, _AGENT_KEYS):
            return None
        assert isinstance(value, dict)
        agent_id, token = self._uuid(value, "id", place), self._uuid(value, "token", place, secret=True)
        name = self._text(value, "name", place, MAX_NAME_CHARS)
        workspace_id = self._uuid(value, "workspace_id", place)
        workspace_name = self._text(value, "workspace_name", place, MAX_NAME_CHARS)
        owner_id = self._uuid(value, "owner_id", place)
        instance_id = self._instance_id(value, place)
        definitions = read_definitions(value, place, self.problems, self.known)
        if len(self.problems) > before:
            return None
        digest = agent_token_digest(token)
        return SeedAgent(
            PeerID(agent_id.bytes),
            digest,
            name,
            workspace_id,
            workspace_name,
            owner_id,
            place,
            definitions,
            instance_id,
        )

    def grant(self, value: object, place: str) -> SeedGrant | None:
        before = len(self.problems)
        if not self._is_object(value, place, _GRANT_KEYS):
            return None
        assert isinstance(value, dict)
        workspace_id, user_id = self._uuid(value, "workspace_id", place), self._uuid(value, "user_id", place)
        words = value.get("rights")
        if not isinstance(words, list):
            wrong = "is missing" if "rights" not in value else f"wants a list of rights, got {kind(words)}"
            self.problems.add(f"{place}.rights", wrong)
            return None
        rights = [self._word(word, f"{place}.rights[{index}]", Right) for index, word in enumerate(words)]
        if len(self.problems) > before:
            return None
        return SeedGrant(workspace_id, user_id, as_granted(right for right in rights if right is not None), place)

    def unique(self, items: Sequence[Any], key: Callable[[Any], object], what: str) -> None:
        first: dict[object, str] = {}
        for item in items:
            other = first.setdefault(key(item), item.place)
            if other != item.place:
                self.problems.add(f"{item.place}.{what}", f"clashes with {other}.{what}: each needs its own")

    def workspaces_agree(self, seed_agents: Sequence[SeedAgent]) -> None:
        first: dict[UUID, SeedAgent] = {}
        for agent in seed_agents:
            other = first.setdefault(agent.workspace_id, agent)
            for what in ("workspace_name", "owner_id"):
                if getattr(agent, what) != getattr(other, what):
                    self.problems.add(
                        f"{agent.place}.{what}",
                        f"is {getattr(agent, what)}, but {other.place} of the same workspace says "
                        f"{getattr(other, what)}: make them equal",
                    )

    def _instance_id(self, value: Mapping[str, Any], place: str) -> str | None:
        """The cloud's id of its machine, "" to have none any more; None where the seed does not say."""
        given = value.get("instance_id")
        return given if given in (None, "") else self._text(value, "instance_id", place, MAX_NAME_CHARS)

    def _is_object(self, value: object, place: str, keys: Sequence[str]) -> bool:
        if not isinstance(value, dict):
            self.problems.add(place, f"wants an object with {', '.join(keys)}, got {kind(value)}")
            return False
        self.known(value, place, keys)
        return True

    def _word(self, value: object, place: str, words: type[E]) -> E | None:
        """One of the words of an enum."""
        known = [str(each.value) for each in words]
        if value in known:
            return words(value)
        shown = f"{value!r:.80}" if isinstance(value, str) else kind(value)
        self.problems.add(place, f"wants one of {', '.join(known)}, got {shown}")
        return None

    def _text(self, value: Mapping[str, Any], key: str, place: str, limit: int) -> str:
        here, text = f"{place}.{key}", value.get(key)
        if key not in value:
            self.problems.add(here, "is missing")
        elif not isinstance(text, str):
            self.problems.add(here, f"wants text, got {kind(text)}")
        elif not text:
            self.problems.add(here, "is empty")
        elif len(text) > limit:
            self.problems.add(here, f"has {len(text)} characters, at most {limit} are possible")
        elif not text.isprintable():  # control characters, and halves of surrogate pairs, which no database stores
            self.problems.add(here, "has characters that cannot be printed: remove them")
        else:
            return text
        return ""

    def _uuid(self, value: Mapping[str, Any], key: str, place: str, *, secret: bool = False) -> UUID:
        before = len(self.problems)
        text = self._text(value, key, place, MAX_TOKEN_CHARS)
        if len(self.problems) == before:
            try:
                parsed = UUID(text)
                if parsed.int:
                    return parsed
                self.problems.add(f"{place}.{key}", "is the nil UUID, which peers refuse: choose another one")
            except ValueError:
                shown = "" if secret else f", got {text!r:.80}"
                self.problems.add(f"{place}.{key}", f"wants a UUID such as 01234567-89ab-cdef-0123-456789abcdef{shown}")
        return UUID(int=0)
