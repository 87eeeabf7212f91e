"""Lines on their way to the coordinator: none lost, none twice, none more than it keeps."""

import pytest
import trio
import trio.testing

from tailnet.agent import logs as logs_module
from tailnet.agent.control import Control
from tailnet.agent.logs import MAX_BATCH_BYTES, MAX_LINE_BYTES, MAX_QUEUED_BYTES, Lines, Logs
from tailnet.errors import RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tests.support.agents import FakeRpc

ONE, OTHER = b"1" * 16, b"2" * 16
INFO, ERROR = agent.Log.INFO, agent.Log.ERROR


async def test_lines_go_in_batches_of_one_source(autojump_clock: trio.testing.MockClock) -> None:
    rpc = FakeRpc()
    logs = Logs(rpc.control())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.run)
        for source, level, line in [
            (ONE, INFO, b"a"),
            (ONE, ERROR, b"b\0\xff"),
            (OTHER, INFO, b"c"),
            (ONE, INFO, b"d"),
        ]:
            logs.put(source, level, line)
        await logs.wait_sent()
        nursery.cancel_scope.cancel()
    sent = [
        (each.log_source_id, [(log.level, log.output) for log in each.logs]) for each in rpc.said("BatchCreateLogs")
    ]
    assert sent == [(ONE, [(INFO, "a"), (ERROR, "b\ufffd\ufffd")]), (OTHER, [(INFO, "c")]), (ONE, [(INFO, "d")])]


async def test_so_much_waits_for_a_coordinator(autojump_clock: trio.testing.MockClock) -> None:
    control, rpc = Control(), FakeRpc()
    logs, line, fitting = Logs(control), b"x" * MAX_LINE_BYTES, MAX_QUEUED_BYTES // MAX_LINE_BYTES
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.run)
        for _ in range(2 * fitting):
            logs.put(ONE, INFO, line)
        assert logs.dropped_lines == fitting
        control.attach(rpc)  # type: ignore[arg-type]
        await logs.wait_sent()
        nursery.cancel_scope.cancel()
    batches = rpc.said("BatchCreateLogs")
    assert sum(len(each.logs) for each in batches) == fitting
    assert max(each.ByteSize() for each in batches) < MAX_BATCH_BYTES + MAX_LINE_BYTES


async def test_a_coordinator_that_keeps_no_more_is_sent_no_more(autojump_clock: trio.testing.MockClock) -> None:
    rpc = FakeRpc(BatchCreateLogs=agent.BatchCreateLogsResponse(log_limit_exceeded=True))
    logs = Logs(rpc.control())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.run)
        logs.put(ONE, INFO, b"a")
        await rpc.wait_said("BatchCreateLogs")
        await logs.wait_sent()
        assert logs.is_full
        logs.put(ONE, INFO, b"b")
        await logs.wait_sent()
        assert logs.dropped_lines == 1
        nursery.cancel_scope.cancel()
    assert len(rpc.calls) == 1


async def test_a_batch_that_is_refused_is_lost_and_counted(autojump_clock: trio.testing.MockClock) -> None:
    rpc = FakeRpc(BatchCreateLogs=RpcError("no"))
    logs = Logs(rpc.control())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.run)
        logs.put(ONE, INFO, b"a")
        await logs.wait_sent()
        nursery.cancel_scope.cancel()
    assert logs.dropped_lines == 1


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"a\nb\r\n", b"c"], [b"a", b"b", b"c"]),
        ([b"a", b"b\n", b"\n"], [b"ab", b""]),
        ([b"12345", b"678\n9"], [b"1234", b"5678", b"9"]),
        ([b"12345678"], [b"1234", b"5678"]),
        ([b"123456789\n"], [b"1234", b"5678", b"9"]),
        ([], []),
    ],
)
def test_output_is_cut_into_lines(pieces: list[bytes], lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "MAX_LINE_BYTES", 4)
    cutter = Lines()
    assert [line for piece in pieces for line in cutter.cut(piece)] + cutter.end() == lines
