"""What agents report, in batches; strays of deleted agents sink nothing; limits hold."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from tailnet.store.reports import (
    EXTERNAL_LOG_SOURCE,
    MAX_CONNECTION_REPORTS_PER_AGENT,
    MAX_LOG_BYTES_PER_AGENT,
    MAX_METADATA_KEYS_PER_AGENT,
)
from tailnet.store.rows import (
    AgentRow,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    LifecycleChange,
    LifecycleState,
    LogBatch,
    LogSource,
    MetadataValue,
    Startup,
    StatsReport,
)
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, fill, make_id, peer_id

MAIN, GPU, NOBODY = peer_id("main"), peer_id("gpu"), peer_id("nobody")
LEVEL_INFO = 3


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def filled(store: Store) -> Store:
    fill(store)
    return store


def get(store: Store, agent_id: bytes = MAIN) -> AgentRow:
    agent = store.callers.get_agent(agent_id)  # type: ignore[arg-type]  # a PeerID is bytes
    assert agent is not None
    return agent


def session(
    number: int, agent_id: PeerID = MAIN, action: ConnectionAction = ConnectionAction.CONNECT
) -> ConnectionReport:
    kind, at = ConnectionType.VSCODE, after(number)
    return ConnectionReport(agent_id, UUID(int=number), action, kind, at, "192.0.2.1", number, "closed", "code")


def test_sessions_that_agents_report(filled: Store) -> None:
    ended = session(1, action=ConnectionAction.DISCONNECT)
    filled.reports.insert_connections([session(1), session(2, GPU), session(3, NOBODY), ended], NOW)
    assert filled.reports.list_connections(MAIN) == [ended, session(1)]
    assert filled.reports.list_connections(GPU) == [session(2, GPU)]
    assert filled.reports.list_connections(NOBODY) == []


def test_the_last_sessions_of_each_agent_are_kept(filled: Store) -> None:
    filled.reports.insert_connections([session(0, GPU)], NOW)
    for first in (0, MAX_CONNECTION_REPORTS_PER_AGENT):
        filled.reports.insert_connections(
            [session(first + more) for more in range(MAX_CONNECTION_REPORTS_PER_AGENT - 1)], NOW
        )
    kept = [each.connection_id.int for each in filled.reports.list_connections(MAIN)]
    last = 2 * MAX_CONNECTION_REPORTS_PER_AGENT - 2
    assert len(kept) == MAX_CONNECTION_REPORTS_PER_AGENT
    assert kept[:2] == [last, last - 1]
    assert len(filled.reports.list_connections(GPU)) == 1


def test_empty_batches_write_nothing(filled: Store) -> None:
    filled.reports.update_lifecycles([])
    filled.reports.insert_stats([])
    filled.reports.insert_connections([], NOW)
    filled.reports.put_metadata([])
    assert filled.reports.insert_logs([]) == []


@pytest.mark.parametrize(
    ("states", "started", "ready"),
    [
        (["STARTING"], 0, None),
        (["STARTING", "READY"], 0, 1),
        (["STARTING", "START_TIMEOUT", "READY"], 0, 2),
        (["START_ERROR"], 0, 0),  # a beginning that was never reported
        (["STARTING", "READY", "SHUTTING_DOWN", "OFF"], 0, 1),
        (["STARTING", "READY", "OFF", "STARTING"], 3, None),  # begins anew
        (["OFF"], None, None),
    ],
)
def test_lifecycle(filled: Store, states: list[str], started: int | None, ready: int | None) -> None:
    # As one batch, so their order inside a batch counts too.
    filled.reports.update_lifecycles(
        [LifecycleChange(MAIN, LifecycleState[state], after(number)) for number, state in enumerate(states)]
    )
    agent = get(filled)
    assert agent.lifecycle_state is LifecycleState[states[-1]]
    assert agent.started_at == (None if started is None else after(started))
    assert agent.ready_at == (None if ready is None else after(ready))


def test_startup(filled: Store) -> None:
    filled.reports.update_startups(
        [Startup(MAIN, "v2.31.0", "/home/alice", ["envbox"], "2.11"), Startup(NOBODY, "", "", [], "")]
    )
    agent = get(filled)
    assert (agent.version, agent.expanded_directory, agent.subsystems, agent.api_version) == (
        "v2.31.0",
        "/home/alice",
        ["envbox"],
        "2.11",
    )


def test_stats(filled: Store) -> None:
    first = StatsReport(MAIN, 1, 2, 3, {"connections_by_proto": {"TCP": 1}}, NOW)
    last = StatsReport(MAIN, 4, 1 << 40, 6, {}, NOW)
    filled.reports.insert_stats([first, StatsReport(NOBODY, 0, 0, 0, {}, NOW), last])
    assert filled.reports.latest_stats(MAIN) == last
    assert filled.reports.latest_stats(GPU) is None


def test_metadata_keeps_the_latest_value(filled: Store) -> None:
    filled.reports.put_metadata([MetadataValue(MAIN, "cpu", "1", "", NOW), MetadataValue(NOBODY, "cpu", "1", "", NOW)])
    filled.reports.put_metadata(
        [MetadataValue(MAIN, "cpu", "2", "", after(1)), MetadataValue(MAIN, "cpu", "3", "late", after(2))]
    )
    assert filled.reports.list_metadata(MAIN) == [MetadataValue(MAIN, "cpu", "3", "late", after(2))]
    assert filled.reports.list_metadata(NOBODY) == []


def test_metadata_keys_are_bounded(filled: Store) -> None:
    for _ in range(2):
        filled.reports.put_metadata(
            [MetadataValue(MAIN, f"{number:04}", "1", "", NOW) for number in range(MAX_METADATA_KEYS_PER_AGENT + 5)]
        )
    filled.reports.put_metadata([MetadataValue(MAIN, "0000", "2", "", NOW), MetadataValue(GPU, "9999", "1", "", NOW)])
    values = filled.reports.list_metadata(MAIN)
    assert len(values) == MAX_METADATA_KEYS_PER_AGENT
    assert values[0].value == "2"
    assert len(filled.reports.list_metadata(GPU)) == 1


def test_log_sources_are_no_conflict(filled: Store) -> None:
    source = LogSource(MAIN, EXTERNAL_LOG_SOURCE, "External", "/emojis/1f310.png", NOW)
    filled.reports.add_log_source(source)
    filled.reports.add_log_source(LogSource(MAIN, EXTERNAL_LOG_SOURCE, "Again", "", after(1)))
    filled.reports.add_log_source(LogSource(NOBODY, EXTERNAL_LOG_SOURCE, "", "", NOW))
    assert filled.reports.list_log_sources(MAIN) == [source]


def test_logs_page_by_rising_ids(filled: Store) -> None:
    script = make_id("script")
    filled.reports.insert_logs([LogBatch(MAIN, script, [(LEVEL_INFO, "one"), (5, "zwei ü")], NOW)])
    filled.reports.insert_logs(
        [LogBatch(GPU, script, [(LEVEL_INFO, "other")], NOW), LogBatch(MAIN, script, [(1, "three")], NOW)]
    )
    lines = filled.reports.list_logs(MAIN)
    assert [(line.level, line.output, line.source_id, line.created_at) for line in lines] == [
        (LEVEL_INFO, "one", script, NOW),
        (5, "zwei ü", script, NOW),
        (1, "three", script, NOW),
    ]
    assert [line.output for line in filled.reports.list_logs(MAIN, after=lines[0].id, limit=1)] == ["zwei ü"]
    assert get(filled).logs_bytes == len("onezwei üthree") + 1


def test_a_line_that_no_store_could_hold_as_it_is(filled: Store) -> None:
    lines = [(LEVEL_INFO, "half \ud800"), (LEVEL_INFO, "nought \0"), (LEVEL_INFO, "whole")]
    filled.reports.insert_logs([LogBatch(MAIN, EXTERNAL_LOG_SOURCE, lines, NOW)])
    kept = [line.output for line in filled.reports.list_logs(MAIN)]
    assert kept == ["half \N{REPLACEMENT CHARACTER}", "nought \N{REPLACEMENT CHARACTER}", "whole"]


def test_log_ids_are_never_used_twice(filled: Store) -> None:
    filled.reports.insert_logs([LogBatch(GPU, EXTERNAL_LOG_SOURCE, [(LEVEL_INFO, "x")], NOW)])
    [line] = filled.reports.list_logs(GPU)
    filled.callers.delete_agent(GPU)
    filled.reports.insert_logs([LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(LEVEL_INFO, "x")], NOW)])
    assert filled.reports.list_logs(MAIN)[0].id > line.id


def test_the_log_limit_refuses_whole_batches(filled: Store) -> None:
    def batch(size: int, agent_id: bytes = MAIN) -> LogBatch:
        return LogBatch(agent_id, EXTERNAL_LOG_SOURCE, [(LEVEL_INFO, "x" * size)], NOW)  # type: ignore[arg-type]

    half = MAX_LOG_BYTES_PER_AGENT // 2
    # The two halves fit to the byte; the third batch is over, of its two lines none is stored.
    over = LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(LEVEL_INFO, ""), (LEVEL_INFO, "y")], NOW)
    assert filled.reports.insert_logs([batch(half), batch(half), over, batch(1, GPU)]) == [
        False,
        False,
        True,
        False,
    ]
    assert len(filled.reports.list_logs(MAIN)) == 2
    main, gpu = get(filled), get(filled, GPU)
    assert (main.logs_bytes, main.logs_overflowed) == (MAX_LOG_BYTES_PER_AGENT, True)
    assert (gpu.logs_bytes, gpu.logs_overflowed) == (1, False)
    # The mark stays, also after a batch that fits because it is empty.
    assert filled.reports.insert_logs([LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [], NOW)]) == [False]
    assert get(filled).logs_overflowed


def test_logs_of_an_agent_that_is_gone(filled: Store) -> None:
    assert filled.reports.insert_logs([LogBatch(NOBODY, EXTERNAL_LOG_SOURCE, [(LEVEL_INFO, "x")], NOW)]) == [False]
    assert filled.reports.list_logs(NOBODY) == []


def test_the_last_lines_are_the_oldest_first(store: Store) -> None:
    fill(store)
    source = make_id("source")
    store.reports.insert_logs([LogBatch(MAIN, source, [(3, text) for text in "abcd"], NOW)])
    store.reports.insert_logs([LogBatch(peer_id("web"), source, [(3, "other")], NOW)])
    assert [line.output for line in store.reports.list_last_logs(MAIN, 3)] == ["b", "c", "d"]
    assert [line.output for line in store.reports.list_last_logs(MAIN, 9)] == ["a", "b", "c", "d"]
