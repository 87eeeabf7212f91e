"""The load generator does what its numbers claim: against the genuine derper, and against the floor."""

import pytest
import trio

from bench import queues, storm
from bench.cases import Carrier, Result
from bench.generator import RunFailed, generate
from bench.servers import serve
from tests.support.gobuild import DERPER, LOAD
from tests.support.peers import require

pytestmark = pytest.mark.interop

SHORT = ("-warmup", "50ms", "-measure", "150ms", "-settle", "50ms")


def run(server: str, carrier: Carrier, *arguments: str, websocket: bool = False) -> Result:
    require(LOAD)
    require(DERPER)
    with serve(server, carrier) as running:
        url = running.url(websocket=websocket)
        return generate(url, running.pid, [*arguments, *SHORT], floor=server == "floor")


@pytest.mark.parametrize("server", ["derper", "floor"])
@pytest.mark.parametrize("carrier", ["plain", "tls"])
@pytest.mark.parametrize("websocket", [False, True])
@pytest.mark.parametrize("scenario", ["pairs", "fanin", "alltoall"])
async def test_a_closed_loop_loses_nothing(server: str, carrier: Carrier, websocket: bool, scenario: str) -> None:
    arguments = ["-scenario", scenario, "-pairs", "4", "-senders", "3", "-size", "1280", "-frames", "4"]
    result = await trio.to_thread.run_sync(lambda: run(server, carrier, *arguments, websocket=websocket))
    traffic = result["traffic"]
    # The generator checks sender, receiver and key of every packet and fails at the first that is not ours.
    assert traffic["delivered"] > 0
    assert traffic["lost"] == 0
    assert traffic["server_cpu_us_per_packet"] > 0
    assert 0 < traffic["latency_us"]["p50"] <= traffic["latency_us"]["p99"]


async def test_an_open_loop_sends_without_being_answered() -> None:
    result = await trio.to_thread.run_sync(lambda: run("derper", "plain", "-rate", "2000", "-frames", "1"))
    traffic = result["traffic"]
    assert traffic["delivered"] > 0
    assert traffic["lost"] == 0
    # What the generator itself was late is in the second figure only.
    assert traffic["due_latency_us"]["p50"] >= traffic["latency_us"]["p50"]


async def test_idle_clients_are_counted_in_memory_and_connects() -> None:
    result = await trio.to_thread.run_sync(lambda: run("derper", "plain", "-scenario", "idle", "-idle", "200"))
    connect = result["connect"]
    assert connect["count"] == 200
    assert connect["bytes_per_client"] > 1000
    assert connect["server_cpu_us"] > 0
    assert "traffic" not in result


@pytest.mark.parametrize(("server", "carrier"), [("derper", "plain"), ("ours", "tls")])
async def test_a_fleet_that_loses_its_way_comes_back(server: str, carrier: Carrier) -> None:
    require(LOAD)
    require(DERPER)
    row = await trio.to_thread.run_sync(lambda: storm.run(server, storm.Storm("small", 20, carrier), 20))
    assert (row.failed, row.lost) == (0, 0)
    assert 0 < row.p50_ms <= row.longest_ms


@pytest.mark.parametrize("server", ["derper", "ours"])
async def test_a_narrow_way_carries_what_it_is_wide_and_all_senders_have_a_share(server: str) -> None:
    require(LOAD)
    require(DERPER)

    def run() -> Result:
        clock = ["-warmup", "50ms", "-measure", "500ms", "-lag", "1s"]
        rate = 2.5 * queues.NARROW_BYTES / queues.PACKET_BYTES
        with serve(server, "plain") as relay:
            return queues.narrow(relay, clock, senders=4, rate=rate)

    slow = await trio.to_thread.run_sync(run)
    assert 0 < slow["goodput_bytes_per_second"] < 1.1 * queues.NARROW_BYTES
    assert 1 / 4 < slow["jain"] <= 1
    assert slow["sparse_lost"] < slow["sparse_sent"]
    assert slow["bulk_latency_us"]["samples"] > 0


async def test_the_wrong_door_is_told_in_one_line() -> None:
    require(LOAD)
    require(DERPER)

    def wrong() -> None:
        with serve("derper", "plain") as running:
            generate(running.url(websocket=False).replace("http:", "https:"), running.pid, SHORT)

    with pytest.raises(RunFailed, match="first record does not look like a TLS handshake"):
        await trio.to_thread.run_sync(wrong)
