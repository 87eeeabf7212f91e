"""The status of an agent, rule by rule."""

from dataclasses import fields, replace
from datetime import datetime, timedelta

import pytest

from tailnet.store.rows import AgentRow, AgentStatus
from tailnet.store.schema import agents
from tailnet.store.store import Store
from tests.support.seeds import NOW, fill, peer_id

INACTIVE_SECONDS = 30.0


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("first", "last", "gone", "now", "status"),
    [
        (None, None, None, 0, AgentStatus.CONNECTING),
        (None, None, None, 120, AgentStatus.CONNECTING),
        (None, None, None, 121, AgentStatus.TIMEOUT),
        (10, 10, None, 10, AgentStatus.CONNECTED),
        (10, 10, None, 40, AgentStatus.CONNECTED),
        (10, 10, None, 41, AgentStatus.DISCONNECTED),  # the server died without writing a disconnection
        (10, 20, 25, 26, AgentStatus.DISCONNECTED),
        (10, 20, 20, 21, AgentStatus.DISCONNECTED),
        (10, 30, 25, 31, AgentStatus.CONNECTED),  # came back
        (10, 10, None, 200, AgentStatus.DISCONNECTED),  # never `timeout` once it has been there
    ],
)
def test_status(
    store: Store, first: float | None, last: float | None, gone: float | None, now: float, status: AgentStatus
) -> None:
    fill(store)
    agent = store.callers.get_agent(peer_id("main"))
    assert agent is not None
    agent = replace(agent, first_connected_at=at(first), last_connected_at=at(last), disconnected_at=at(gone))
    assert agent.status(NOW + timedelta(seconds=now), INACTIVE_SECONDS) is status


def test_no_timeout_when_it_is_switched_off(store: Store) -> None:
    fill(store)
    agent = store.callers.get_agent(peer_id("main"))
    assert agent is not None
    assert (
        replace(agent, connection_timeout_seconds=0).status(NOW + timedelta(days=9), INACTIVE_SECONDS)
        is AgentStatus.CONNECTING
    )


def test_an_agent_row_has_every_column_but_the_token() -> None:
    assert {field.name for field in fields(AgentRow)} == {column.name for column in agents.columns} - {"token_digest"}
