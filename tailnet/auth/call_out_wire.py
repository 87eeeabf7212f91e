"""What is asked of the control plane's URL, and what it may answer: bytes to values, no I/O (layer L2).

POST, JSON both ways, signed: docs/auth.md has every field.  An answer that is not exactly one of those is `Nonsense`:
whoever stands between (a proxy's error page, a login form) must not be taken for a "yes" or a "no".
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from derp.json_numbers import parse_int
from derp.text import error_text
from tailnet.auth.callers import ControlPlaneUser, Identity, Reach
from tailnet.auth.claims import Nonsense, read_agent, read_object, read_rights, read_user
from tailnet.config.external_auth import Provider, fetched_providers
from tailnet.types import PeerID

VERSION: Final = 1
TIMESTAMP_HEADER: Final = "x-tailnet-timestamp"
SIGNATURE_HEADER: Final = "x-tailnet-signature"
# How far the clocks of those who sign and those who check may be apart.
SIGNATURE_SECONDS: Final = 60
# How long an answer is believed that says nothing of it, and what it may say.  Below a second each look at a live
# connection would be a question; beyond an hour nobody remembers that a right was there.
DEFAULT_SECONDS: Final = 60.0
MAX_SECONDS: Final = 3_600.0
MIN_SECONDS: Final = 1.0
# The same of a "no": who waits to be let in should not wait long, and a loop of his should be no storm.
DEFAULT_NO_SECONDS: Final = 5.0
MAX_NO_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class AgentQuestion:
    """Which agent has this token?"""

    token: str

    def body(self) -> dict[str, str]:
        return {"question": "agent", "token": self.token}


@dataclass(frozen=True, slots=True)
class UserQuestion:
    """Which user has this session token?"""

    token: str

    def body(self) -> dict[str, str]:
        return {"question": "user", "token": self.token}


@dataclass(frozen=True, slots=True)
class RightsQuestion:
    """Which agent has this id, and what may that user do with its workspace?"""

    user_id: UUID
    agent_id: PeerID

    def body(self) -> dict[str, str]:
        return {"question": "rights", "user_id": str(self.user_id), "agent_id": str(self.agent_id)}


@dataclass(frozen=True, slots=True)
class ProvidersQuestion:
    """At whom may users link their accounts?"""

    def body(self) -> dict[str, str]:
        return {"question": "external_auth"}


Question = AgentQuestion | UserQuestion | RightsQuestion | ProvidersQuestion
Found = Identity | Reach | tuple[Provider, ...]


@dataclass(frozen=True, slots=True)
class CallOutAnswer:
    """`found` is None for a "no".  `seconds`: how long it may be believed."""

    found: Found | None
    seconds: float


def question_body(question: Question) -> bytes:
    """What is posted."""
    return json.dumps({"version": VERSION, **question.body()}, separators=(",", ":")).encode()


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over the timestamp's text, a full stop and the body, as it stands in the header."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def is_signed(secret: bytes, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether somebody with the secret sent this within the last minute.  `headers` have lower-case names; `now` is
    Unix time."""
    timestamp = headers.get(TIMESTAMP_HEADER, "")
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 12):
        return False
    given = headers.get(SIGNATURE_HEADER, "").encode("utf-8", "replace")
    is_right = hmac.compare_digest(signature(secret, timestamp, body).encode(), given)
    return is_right and abs(now - int(timestamp)) <= SIGNATURE_SECONDS


def read_answer(body: bytes, question: Question) -> CallOutAnswer:
    """What the control plane said.  Raises Nonsense."""
    try:
        said = json.loads(body, parse_int=parse_int, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Nonsense(_not_json(body)) from None
    answer = read_object(said, "the answer")
    known = answer.get("known")
    if known is False:
        return CallOutAnswer(None, _seconds(answer, DEFAULT_NO_SECONDS, MAX_NO_SECONDS))
    if known is not True:
        raise Nonsense('"known" is neither true nor false')
    return CallOutAnswer(_found(answer, question), _seconds(answer, DEFAULT_SECONDS, MAX_SECONDS))


def _found(answer: Mapping[str, Any], question: Question) -> Found | None:
    if isinstance(question, ProvidersQuestion):
        try:
            return fetched_providers(answer.get("external_auth"))
        except ValueError as error:
            raise Nonsense(f"external_auth: {error_text(error)}") from None
    if isinstance(question, UserQuestion):
        user = read_user(answer.get("user"))
        return ControlPlaneUser(user.id, user.username, user.active, user.role) if user.active else None
    agent = read_agent(answer.get("agent"))
    if isinstance(question, AgentQuestion):
        return agent
    if agent.id != question.agent_id:
        raise Nonsense(f"agent.id is not the {question.agent_id} that was asked about")
    return Reach(agent, read_rights(answer.get("rights"), "rights"))


def _seconds(answer: Mapping[str, Any], default: float, most: float) -> float:
    said = answer.get("max_age", default)
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said < 1e12:  # nor NaN
        raise Nonsense("max_age is no number of seconds")
    return min(max(float(said), MIN_SECONDS), most)


def _not_json(body: bytes) -> str:
    start = body.lstrip()[:15].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page: does the URL lead to a login form or to a proxy's error page?"
    return "it is no JSON" if start else "it is empty"


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
