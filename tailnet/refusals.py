"""Why a caller is turned away: statuses and sentences, all in one place (layer L0).

SDKs act on the status and on the field names of validations, people on the sentences; both are those of the reference,
where it has one.  Raised by auth/ and RPC admission; api/answers.py makes the JSON body of it.
"""

from dataclasses import dataclass
from typing import Final

from derp.text import fit_to_show
from tailnet.errors import TailnetError

SIGNED_OUT: Final = "You are signed out or your session has expired. Please sign in again to continue."
NO_SUCH_AGENT: Final = "Agent doesn't exist with that id, or you do not have access to it."
NO_SUCH_RESOURCE: Final = "Resource not found or you do not have access to this resource"


@dataclass(frozen=True, slots=True)
class Validation:
    """One field of the request that is wrong."""

    field: str
    detail: str


class Refused(TailnetError):
    """The caller gets `status` and a body of message, detail and validations.  Holds no secret, so it may be logged.

    `retry_after_seconds`: when to come back, whole seconds; 0: unsaid.  `is_unknown`: whoever refuses has never heard
    of this token, so others may know it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        detail: str = "",
        validations: tuple[Validation, ...] = (),
        *,
        retry_after_seconds: int = 0,
        is_unknown: bool = False,
    ) -> None:
        super().__init__(f"{status} {message}" + (f" ({detail})" if detail else ""))
        self.status = status
        self.message = message
        self.detail = detail
        self.validations = validations
        self.retry_after_seconds = retry_after_seconds
        self.is_unknown = is_unknown


def agent_token_missing() -> Refused:
    return Refused(401, 'Cookie "coder_session_token" must be provided.')


def agent_token_malformed(length: int) -> Refused:
    return Refused(
        401, "Workspace agent token invalid.", f"An agent token must be a valid UUIDv4. (len {length})", is_unknown=True
    )


def agent_unknown() -> Refused:
    return Refused(
        401,
        "Workspace agent not authorized.",
        "The agent cannot authenticate until the workspace provision job has been completed. "
        "If the job is no longer running, this agent is invalid.",
        is_unknown=True,
    )


def user_token_missing() -> Refused:
    return Refused(401, SIGNED_OUT, 'Cookie "coder_session_token" or query parameter must be provided.')


def user_token_malformed() -> Refused:
    return Refused(
        401, SIGNED_OUT, "Invalid API key format: wanted 10 characters, a hyphen and 22 characters.", is_unknown=True
    )


def user_token_unknown() -> Refused:
    return Refused(401, SIGNED_OUT, "API key is invalid.", is_unknown=True)


def user_secret_wrong() -> Refused:
    return Refused(401, SIGNED_OUT, "API key secret is invalid.")


def user_token_expired(expired_at: str) -> Refused:
    return Refused(401, SIGNED_OUT, f'API key expired at "{expired_at}".')


def user_not_active() -> Refused:
    return Refused(401, "User is not active. Contact your administrator.")


def owner_not_active() -> Refused:
    return Refused(403, "The owner of this workspace is not active.", "Its administrator can tell why.")


def key_or_proxy_missing() -> Refused:
    """On routes that a workspace proxy may call as well, every unusable key gets this one answer."""
    return Refused(401, "API key or external proxy authentication required, but none provided")


def agent_id_malformed(text: str, reason: str) -> Refused:
    return Refused(400, f'Invalid UUID "{text}".', reason)


def agent_not_found() -> Refused:
    """The same for an id that does not exist and for one that is not the caller's, so that ids cannot be probed."""
    return Refused(404, NO_SUCH_AGENT)


def resource_not_found() -> Refused:
    return Refused(404, NO_SUCH_RESOURCE)


def forbidden() -> Refused:
    """Of somebody who may see it, and no more."""
    return Refused(403, "Forbidden.")


def agent_not_connected(status: str) -> Refused:
    return Refused(400, f'Agent state is "{status}", it must be in the "connected" state.')


def too_many_into_agents(reason: str) -> Refused:
    return Refused(503, "Too many connections into agents are open.", reason, retry_after_seconds=10)


def browser_only() -> Refused:
    # 409 is permanent to SDKs: they say so at once instead of dialling again.
    return Refused(
        409,
        "Client connections are disabled on this server.",
        "Only the browser may reach workspaces: browser_only is set.",
    )


def version_unsupported(detail: str) -> Refused:
    return Refused(400, "Unknown or unsupported API version", validations=(Validation("version", detail),))


def resume_token_invalid(detail: str) -> Refused:
    # SDKs look for this validation, drop the token and dial again.
    return Refused(401, "Invalid resume token", detail, (Validation("resume_token", "Invalid resume token"),))


def store_unreachable() -> Refused:
    # The reference answers 500 here, which its SDKs take as final; a store that is away for a moment is not.
    return Refused(503, "The server cannot read its store. Please try again.", "Its log says what failed.")


def no_secrets_kept(reason: str) -> Refused:
    # 501 and not 503: coming again changes nothing until the operator has.
    return Refused(501, "This server cannot keep or read that secret.", reason)


def control_plane_unreachable() -> Refused:
    # Not 401, which SDKs take as final.
    return Refused(
        503,
        "The server cannot ask its control plane who you are. Please try again.",
        "Its log says what failed.",
        retry_after_seconds=1,
    )


def provider_trouble(provider_id: str, reason: str) -> Refused:
    return Refused(502, f'External auth provider "{provider_id}" cannot be asked.', reason)


def not_signed() -> Refused:
    return Refused(
        401,
        "Only the control plane may say so.",
        "X-Tailnet-Signature is missing, is made with another secret, or is of another time: see docs/auth.md.",
    )


def no_relays_expected() -> Refused:
    return Refused(404, "No relay may have the key set of this server.", "Its operator has to set --relays-token-file.")


def relay_token_wrong() -> Refused:
    return Refused(
        401,
        "Relays only.",
        "The bearer token is missing or is another one than that of the server's --relays-token-file.",
    )


def admission_key_malformed(detail: str) -> Refused:
    return Refused(400, "Validation failed.", validations=(Validation("NodePublic", detail),))


def signing_keys_missing() -> Refused:
    return Refused(
        503,
        "The server has no key for this token now. Please try again.",
        "Its signing keys could not be read, or were read a moment ago.",
        retry_after_seconds=5,
    )


def agent_token_refused(why: str) -> Refused:
    """`why` a signed token is good for nothing, for its holder."""
    return Refused(401, "Workspace agent not authorized.", why)


def user_token_refused(why: str) -> Refused:
    return Refused(401, SIGNED_OUT, why)


def too_many_requests(limit: int, wait_seconds: int) -> Refused:
    return Refused(
        429,
        f"You've been rate limited for sending more than {limit} requests in a minute.",
        f"Please try again in {wait_seconds} s.",
        retry_after_seconds=wait_seconds,
    )


def too_many_reports(wait_seconds: int) -> Refused:
    return Refused(
        429,
        "This agent reports more than it may.",
        f"Nothing of this report was taken. Please try again in {wait_seconds} s.",
        retry_after_seconds=wait_seconds,
    )


def method_not_allowed() -> Refused:
    return Refused(405, "Method not allowed.")


def upgrade_missing() -> Refused:
    return Refused(
        426,
        "This address speaks websocket only.",
        "The request has no `Connection: Upgrade` and `Upgrade: websocket`: a proxy in between may have removed them.",
    )


def foreign_origin(origin: str, host: str) -> Refused:
    # Browsers send cookies along to websockets of any site; their Origin header is what tells.
    return Refused(
        403, "This website may not open websockets here.", f'Origin "{origin:.200}" is not that of host "{host:.200}".'
    )


def route_not_found() -> Refused:
    return Refused(404, "Route not found.")


def administrators_only() -> Refused:
    return Refused(
        403,
        "Forbidden.",
        "Only administrators may ask for this: `tailnet admin user update NAME --role admin` makes one.",
    )


def stranger(closed: str) -> Refused:
    """`closed`: to whom and why, as derp/server/address.py says it."""
    return Refused(
        403, "Closed to strangers.", fit_to_show(f"Closed to {closed}, or come with an administrator's token.")
    )


def shown_reason(text: str) -> str:
    """What somebody else gave as a reason, made fit to be a detail."""
    return fit_to_show(text)[:200]
