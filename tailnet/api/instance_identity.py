"""Sessions for agents that have no token yet (layer L3): POST .../workspaceagents/{aws,azure,google}-instance-identity.

The body proves who calls, so nobody is asked for a token; each address has a number of tries in a minute, and all
together have one, since a proof costs its checker more than who makes one up.
Next hop: services/instance_identity.py.
"""

from collections.abc import Awaitable
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import Field, field_validator
from starlette.requests import Request

from tailnet.api.answers import Body
from tailnet.api.bodies import Sent, body_of, takes
from tailnet.api.guards import ServicesOf, take_try
from tailnet.identity.instance import ClaimsUnreadable, IdentityRefused
from tailnet.refusals import Refused
from tailnet.services.instance_identity import NoSuchInstance, SeveralAgents

router = APIRouter(prefix="/api/v2/workspaceagents", tags=["agents"])

MAX_NAME_CHARS: Final = 256
_MAX_SHOWN_CHARS: Final = 128
# Two documents of 64 KiB, which base64 or escapes make longer by a third, and a name.
MAX_BODY_BYTES: Final = 256 * 1024


class _Proof(Sent):
    """`agent_name`: which agent of the instance asks, where it has several."""

    agent_name: str = Field(default="", max_length=MAX_NAME_CHARS)

    @field_validator("*", mode="after")
    @classmethod
    def _given(cls, value: str) -> str:
        # Halves of surrogate pairs, which JSON can spell, have no bytes that anybody could have signed.
        if any("\ud800" <= each <= "\udfff" for each in value):
            raise ValueError("holds half of a character")
        return value


class AwsProof(_Proof):
    """An instance identity document, and its RSA signature as base64."""

    signature: str = Field(min_length=1)
    document: str = Field(min_length=1)


class AzureProof(_Proof):
    """An attested document: PKCS #7 as base64."""

    signature: str = Field(min_length=1)
    encoding: str = Field(min_length=1)


class GoogleProof(_Proof):
    """An identity token of the instance's service account, with its full claims."""

    json_web_token: str = Field(min_length=1)


class SessionToken(Body):
    """What the agent comes in with from now on."""

    session_token: UUID


def _body(model: type[_Proof]) -> Any:
    return Depends(body_of(model, MAX_BODY_BYTES))


async def _within_limits(asked: Request, services: ServicesOf) -> None:
    """Takes one try of the caller's address, and one of all."""
    take_try(asked, services.identity_limits)


_LIMITED: Final = [Depends(_within_limits)]


@router.post("/aws-instance-identity", dependencies=_LIMITED, openapi_extra=takes(AwsProof))
async def aws(services: ServicesOf, sent: Annotated[AwsProof, _body(AwsProof)]) -> SessionToken:
    """Authenticate agent on AWS instance."""
    return await _answer("AWS", services.identity.aws(sent.document, sent.signature, sent.agent_name))


@router.post("/azure-instance-identity", dependencies=_LIMITED, openapi_extra=takes(AzureProof))
async def azure(services: ServicesOf, sent: Annotated[AzureProof, _body(AzureProof)]) -> SessionToken:
    """Authenticate agent on Azure instance."""
    return await _answer("Azure", services.identity.azure(sent.signature, sent.agent_name))


@router.post("/google-instance-identity", dependencies=_LIMITED, openapi_extra=takes(GoogleProof))
async def google(services: ServicesOf, sent: Annotated[GoogleProof, _body(GoogleProof)]) -> SessionToken:
    """Authenticate agent on Google Cloud instance."""
    return await _answer("GCP", services.identity.google(sent.json_web_token, sent.agent_name))


async def _answer(cloud: str, exchange: Awaitable[UUID]) -> SessionToken:
    try:
        return SessionToken(session_token=await exchange)
    except NoSuchInstance as unknown:
        shown = unknown.instance_id[:_MAX_SHOWN_CHARS]
        if unknown.name:
            raise Refused(404, f'No agent found with instance ID "{shown}" and name "{unknown.name}".') from None
        raise Refused(404, f'Instance with id "{shown}" not found.') from None
    except SeveralAgents as several:
        shown, names = several.instance_id[:_MAX_SHOWN_CHARS], ", ".join(several.names)
        text = f'Multiple agents found with instance ID "{shown}". Set CODER_AGENT_NAME to one of: {names}'
        raise Refused(409, text) from None
    except ClaimsUnreadable as unreadable:
        raise Refused(400, "Error decoding JWT claims.", str(unreadable)) from None
    except IdentityRefused as refused:
        raise Refused(401, f"Invalid {cloud} identity.", str(refused)) from None
