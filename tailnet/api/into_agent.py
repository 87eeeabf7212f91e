"""What requests that reach into an agent have in common (layer L3): is it connected, and what is said when it fails.

Asked by containers.py, listening_ports.py and pty.py; next hops: services/agents.py, services/agent_http.py.
"""

from typing import Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from starlette.requests import HTTPConnection

from tailnet import refusals
from tailnet.api.answers import Body
from tailnet.api.guards import services_of
from tailnet.api.middleware import exchange_of
from tailnet.refusals import Refused, shown_reason
from tailnet.services.agent_http import AgentFailed, AgentRefused
from tailnet.services.own_node import TooMany, Unreachable
from tailnet.store.rows import AgentIdentity, AgentStatus

M = TypeVar("M", bound=BaseModel)

# What Go writes of a slice or a map that was never made is null.
LISTED: Final = BeforeValidator(lambda value: () if value is None else value)
MAPPED: Final = BeforeValidator(lambda value: {} if value is None else value)
DIALLING: Final = "Internal error dialing workspace agent."


class FromAgent(Body):
    """What an agent says and we pass on.  Keys that we do not know are newer agents', and stay here."""

    model_config = ConfigDict(extra="ignore")


async def check_connected(asked: HTTPConnection, agent: AgentIdentity) -> None:
    """Raises Refused for an agent that is not connected."""
    status = await services_of(asked).agents.status(agent.id)
    if status is None:
        raise refusals.agent_not_found()
    if status is not AgentStatus.CONNECTED:
        raise refusals.agent_not_connected(status.value)


async def ask_agent(
    asked: HTTPConnection,
    agent: AgentIdentity,
    path: str,
    answer: type[M],
    method: str = "GET",
    *,
    failed: str,
    passes_errors: bool = True,
) -> M:
    """What a connected agent answers there.

    Raises Refused: `failed` for an answer that is of no use; an error of the agent as it came, if it `passes_errors`,
    and 408 where none came in time.
    """
    await check_connected(asked, agent)
    user_id = exchange_of(asked.scope).caller_id
    try:
        return await services_of(asked).agent_http.ask(agent.id, user_id, path, answer, method)
    except (AgentRefused, AgentFailed, Unreachable, TooMany) as error:
        raise refused_of(error, failed, passes_errors=passes_errors) from None


def refused_of(
    error: AgentRefused | AgentFailed | Unreachable | TooMany, failed: str, *, passes_errors: bool = True
) -> Refused:
    """Why an agent gave nothing, as an answer of ours."""
    if isinstance(error, AgentRefused):
        return error.refused if passes_errors else Refused(500, failed, str(error))
    if isinstance(error, AgentFailed):
        return Refused(408 if error.is_late and passes_errors else 500, failed, shown_reason(str(error)))
    if isinstance(error, TooMany):
        return refusals.too_many_into_agents(str(error))
    return Refused(500, DIALLING, shown_reason(str(error)))
