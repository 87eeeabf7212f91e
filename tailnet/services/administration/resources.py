"""Each kind of thing with its models, and the way from JSON to rows and back (layer L3).

`RESOURCES` is what the API's routes, the JSON lines and the commands are made of.  Next hop: service.py does what is
asked; store/administration/kinds.py has the tables.
"""

import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

from pydantic import BaseModel, ValidationError

from derp.text import fit_to_show
from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration import models
from tailnet.services.administration.models import Given, Shown
from tailnet.store.administration import kinds
from tailnet.store.administration.audit import shown_id
from tailnet.store.administration.kinds import NONE, Kind
from tailnet.store.administration.values import ANY, Match, Wanted
from tailnet.store.definitions import KINDS as DEFINITIONS
from tailnet.store.definitions import NONE as NO_DEFINITIONS
from tailnet.store.definitions import SeedDefinitions, read_definitions
from tailnet.store.problems import Problems
from tailnet.store.rows import Right, Role, as_granted
from tailnet.tokens import agent_token_digest, can_be_sent, parse_user_token
from tailnet.types import PeerID

_LETTERS: Final = string.ascii_letters + string.digits
TOKEN_ID_CHARS: Final = 10
TOKEN_SECRET_CHARS: Final = 22
_MAX_ID_CHARS: Final = 64
# As tokens.py makes the id of a token of another form.
_OPAQUE: Final = "opaque:"
_OF_LINES: Final = {"kind", "id"}
_NOT_COLUMNS: Final = frozenset({"token", "token_sha256", "secret_sha256", *DEFINITIONS})


@dataclass(frozen=True, slots=True)
class Secret:
    """A new token: as its holder has it, and as the store does."""

    text: str = field(repr=False)
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of thing, for those who speak JSON."""

    kind: Kind
    plural: str
    given: type[Given]
    change: type[Given]
    shown: type[Shown]
    label: str  # the field by which people know one; "" if none
    columns: tuple[str, ...]  # of tables for people
    to_values: Callable[[dict[str, Any]], dict[str, Any]]
    to_shown: Callable[[Mapping[str, Any]], dict[str, Any]]

    @property
    def name(self) -> str:
        return self.kind.name

    def parse_id(self, text: str) -> Any:
        """An id as it stands in a path.  Raises AdministrationError."""
        try:
            if self.kind is kinds.TOKEN:
                return _token_id(text)
            if self.kind is kinds.GRANT:
                workspace_id, _, user_id = text.partition(":")
                return _uuid(workspace_id), _uuid(user_id)
            found = _uuid(text)
        except ValueError:
            wanted = "a UUID" if self.kind is not kinds.GRANT else "WORKSPACE_ID:USER_ID"
            raise AdministrationError(
                Fault.INVALID, f"{fit_to_show(text[:80])!r} is no id of a {self.name}", [("id", f"wants {wanted}")]
            ) from None
        if not found.int:
            raise AdministrationError(Fault.INVALID, "the nil UUID is nobody's id", [("id", "choose another one")])
        return PeerID(found.bytes) if self.kind is kinds.AGENT else found

    def new_id(self, body: Given | None = None) -> Any:
        """An id that nothing has; of a grant what it is about."""
        if isinstance(body, models.GrantGiven):
            return body.workspace_id, body.user_id
        if self.kind is kinds.TOKEN:
            return _random_text(TOKEN_ID_CHARS)
        return PeerID(uuid4().bytes) if self.kind is kinds.AGENT else uuid4()

    def read(self, text: bytes | str, *, partial: bool = False) -> Given:
        """JSON as a model.  Raises AdministrationError with every mistake."""
        body = read_model(self.change if partial else self.given, text)
        assert isinstance(body, Given)
        return body

    def wanted(
        self, ident: Any, body: Given, *, partial: bool = False, match: Match = ANY
    ) -> tuple[Wanted, Secret | None]:
        """What the store is to have, and the token that a new one gets if the caller brought none."""
        given = body.model_dump(exclude_unset=partial, exclude=_OF_LINES)
        secret, made = _secret(self.kind, ident, given)
        values = self.to_values({name: value for name, value in given.items() if name not in _NOT_COLUMNS})
        _insist_on_id(self.kind, ident, values)
        if secret is not None:
            values[self.kind.digest] = secret
        wanted = Wanted(
            ident,
            values,
            if_new={self.kind.digest: made.digest} if made is not None else NONE,
            must_exist=partial,
            match=match,
            definitions=_definitions(body) if self.kind is kinds.AGENT else NO_DEFINITIONS,
        )
        return wanted, made

    def show(self, row: Mapping[str, Any], token: str = "") -> dict[str, Any]:
        """A row as JSON.  `token`: one that was made this moment."""
        body = self.shown.model_validate(self.to_shown(row) | ({"token": token} if token else {}))
        return body.model_dump(mode="json")


def read_model(model: type[BaseModel], text: bytes | str) -> Any:
    """JSON as a model.  Raises AdministrationError with every mistake; none repeats what was sent."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise mistakes(error) from None


def mistakes(error: ValidationError) -> AdministrationError:
    """What pydantic found, in our words; none repeats what was sent, which may be a token."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    if found and found[0]["type"] == "json_invalid":
        return AdministrationError(Fault.INVALID, f"this is no JSON: {fit_to_show(found[0]['msg'])}")
    problems = [(_place(each["loc"]), _reason(each["type"], each["msg"])) for each in found]
    return AdministrationError(Fault.INVALID, "some fields are wrong", problems)


def _place(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return fit_to_show(text.removeprefix(".")[:120]) or "body"


def _reason(kind: str, message: str) -> str:
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "is no field that is known here"
    return fit_to_show(message.removeprefix("Value error, "))[:300]


def new_token(kind: Kind, ident: Any) -> Secret:
    """A token for a user (of that id) or for an agent."""
    if kind is kinds.AGENT:
        token = uuid4()
        return Secret(str(token), agent_token_digest(token))
    text = f"{ident}-{_random_text(TOKEN_SECRET_CHARS)}"
    return Secret(text, parse_user_token(text).secret_digest)


def _secret(kind: Kind, ident: Any, given: dict[str, Any]) -> tuple[bytes | None, Secret | None]:
    """The digest of a token that the caller brought, or else a token for a new one."""
    if not kind.digest:
        return None, None
    field = "token_sha256" if kind is kinds.AGENT else "secret_sha256"
    token, digest = given.get("token"), given.get(field)
    if token is not None and digest is not None:
        raise AdministrationError(
            Fault.INVALID, "a token comes as it is or as a digest", [(field, "leave this or `token` out")]
        )
    if digest is not None:
        return bytes.fromhex(digest), None
    if token is None:
        return None, new_token(kind, ident) if not str(ident).startswith(_OPAQUE) else None
    if kind is kinds.AGENT:
        return agent_token_digest(token), None
    if not can_be_sent(token):
        raise AdministrationError(
            Fault.INVALID, "no request could carry this token",
            [("token", "wants visible ASCII characters without blanks, quotes, commas, semicolons")],
        )  # fmt: skip
    presented = parse_user_token(token)
    if presented.id != ident:
        raise AdministrationError(Fault.INVALID, "this token has another id", [("token", f"has the id {presented.id}")])
    return presented.secret_digest, None


def _token_id(text: str) -> str:
    opaque = text.removeprefix(_OPAQUE)
    is_opaque = opaque != text and len(opaque) == 16 and all(each in string.hexdigits.lower() for each in opaque)
    is_plain = len(text) == TOKEN_ID_CHARS and all(each in _LETTERS for each in text)
    if not (is_opaque or is_plain):
        raise AdministrationError(
            Fault.INVALID,
            f"{fit_to_show(text[:_MAX_ID_CHARS])!r} is no id of a token",
            [("id", f"wants {TOKEN_ID_CHARS} letters and digits, or {_OPAQUE} and 16 hex digits")],
        )
    return text


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _definitions(body: Given) -> SeedDefinitions:
    lists = {
        sort: [each.model_dump(mode="json", exclude_none=True) for each in getattr(body, sort)]
        for sort in DEFINITIONS
        if getattr(body, sort) is not None
    }
    if not lists:
        return NO_DEFINITIONS
    problems = Problems("")
    found = read_definitions(lists, "", problems, lambda *_: None)
    if problems.found:
        wrong = [(place.removeprefix("."), reason) for place, reason in problems.found]
        raise AdministrationError(Fault.INVALID, "what the agent should run and show makes no sense", wrong)
    return found


# --- from JSON to columns, and back


def _uuid(text: str) -> UUID:
    return UUID(PeerID.parse(text.lower()).hex())


def _insist_on_id(kind: Kind, ident: Any, values: Mapping[str, Any]) -> None:
    """Where the id of a thing stands in its fields too, they say the same."""
    if len(kind.key) > 1:
        wrong = [
            (name, "is another one than in its id")
            for name, part in zip(kind.key, ident, strict=True)
            if values.get(name, part) != part
        ]
        if wrong:
            raise AdministrationError(Fault.INVALID, f"this {kind.name} has another id", wrong)


def _user_values(given: dict[str, Any]) -> dict[str, Any]:
    return given | ({"role": Role(given["role"])} if "role" in given else {})


def _user_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return _columns_shown(kinds.USER, row) | {"role": row["role"].value}


def _grant_values(given: dict[str, Any]) -> dict[str, Any]:
    return given | ({"rights": as_granted(map(Right, given["rights"]))} if "rights" in given else {})


def _grant_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {"created_at": row["created_at"], "updated_at": row["updated_at"]}
    ids = {"id": shown_id((row["workspace_id"], row["user_id"]))}
    ids |= {"workspace_id": row["workspace_id"], "user_id": row["user_id"]}
    return ids | {"rights": [right.value for right in Right if right in row["rights"]]} | times


def _same(given: dict[str, Any]) -> dict[str, Any]:
    return given


def _workspace_values(given: dict[str, Any]) -> dict[str, Any]:
    return given | ({"status": models.STATUS_NUMBERS[given["status"]]} if "status" in given else {})


def _agent_values(given: dict[str, Any]) -> dict[str, Any]:
    parent = given.get("parent_id")
    return given | ({"parent_id": _peer(parent)} if "parent_id" in given else {})


def _definition_values(given: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "agent_id" in given:
        values["agent_id"] = _peer(given.pop("agent_id"))
    position = given.pop("position", None)
    if position is not None:
        values["position"] = position
    if given.get("log_source_id", "") is None:
        del given["log_source_id"]
    definition = {name: str(value) if isinstance(value, UUID) else value for name, value in given.items()}
    if definition:
        values["definition"] = definition
    return values


def _peer(ident: UUID | None) -> PeerID | None:
    return None if ident is None else PeerID(ident.bytes)


def _columns_shown(kind: Kind, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", *kind.columns, *kind.reported)
    return {name: value.uuid if isinstance(value := row[name], PeerID) else value for name in names}


def _token_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return _columns_shown(kinds.TOKEN, row)


def _workspace_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return _columns_shown(kinds.WORKSPACE, row) | {"status": models.STATUS_WORDS[row["status"]]}


def _agent_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return _columns_shown(kinds.AGENT, row) | {"lifecycle_state": models.LIFECYCLE_WORDS[row["lifecycle_state"]]}


def _app_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return _script_shown(row) | {"health": models.HEALTH_WORDS[row["health"]]}


def _script_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "agent_id": row["agent_id"].uuid, "position": row["position"], **row["definition"]}


_ALL: Final = (
    Resource(
        kinds.USER, "users", models.UserGiven, models.UserChange, models.UserShown, "username",
        ("username", "id", "active", "role", "created_at"), _user_values, _user_shown,
    ),
    Resource(
        kinds.TOKEN, "tokens", models.TokenGiven, models.TokenChange, models.TokenShown, "purpose",
        ("id", "user_id", "purpose", "expires_at", "created_at"), _same, _token_shown,
    ),
    Resource(
        kinds.WORKSPACE, "workspaces", models.WorkspaceGiven, models.WorkspaceChange, models.WorkspaceShown, "name",
        ("name", "id", "owner_id", "status", "created_at"), _workspace_values, _workspace_shown,
    ),
    Resource(
        kinds.GRANT, "grants", models.GrantGiven, models.GrantChange, models.GrantShown, "",
        ("workspace_id", "user_id", "rights", "updated_at"), _grant_values, _grant_shown,
    ),
    Resource(
        kinds.AGENT, "agents", models.AgentGiven, models.AgentChange, models.AgentShown, "name",
        ("name", "id", "workspace_id", "lifecycle_state", "last_connected_at"), _agent_values, _agent_shown,
    ),
    Resource(
        kinds.APP, "apps", models.AppGiven, models.AppChange, models.AppShown, "slug",
        ("slug", "id", "agent_id", "position", "health"), _definition_values, _app_shown,
    ),
    Resource(
        kinds.SCRIPT, "scripts", models.ScriptGiven, models.ScriptChange, models.ScriptShown, "display_name",
        ("display_name", "id", "agent_id", "position", "cron"), _definition_values, _script_shown,
    ),
)  # fmt: skip
RESOURCES: Final[Mapping[str, Resource]] = {each.name: each for each in _ALL}
