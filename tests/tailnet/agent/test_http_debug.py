"""Reports of an agent's network and counts, with a node and without one."""

import pytest
import trio

from tailnet.agent import http_debug
from tailnet.agent.context import Context
from tailnet.agent.counters import Kind
from tailnet.agent.http_debug import magicsock_text, manifest_shown, netcheck_report, prometheus_text
from tailnet.proto.generated.agent_pb2 import Manifest
from tests.support.agents import AGENT, a_stream, two_engines


def test_without_a_place_in_the_tailnet() -> None:
    assert netcheck_report(None)["net_info"] == {"PreferredDERP": 0, "WorkingUDP": False, "Endpoints": []}
    assert magicsock_text(None, 0.0) == "the agent has no place in the tailnet\n"


def test_an_interface_with_small_packets_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert netcheck_report(None)["severity"] == "ok"
    monkeypatch.setattr(http_debug, "NEEDED_MTU", 1_000_000)
    report = netcheck_report(None)
    loopback = next(each for each in report["interfaces"]["interfaces"] if each["name"] == "lo")
    assert loopback["addresses"][0] == "127.0.0.1/8"
    assert report["severity"] == report["interfaces"]["severity"] == "warning"
    assert "lo has MTU" in str(report["interfaces"]["warnings"])


async def test_the_way_to_each_peer() -> None:
    with trio.fail_after(60):
        async with two_engines() as (agent, user):
            assert "no session" in magicsock_text(agent, trio.current_time())
            await user.ping(AGENT)
            lines = magicsock_text(agent, trio.current_time())
            assert "directly by" in lines
            assert "session 0 s" in lines


async def test_counts() -> None:
    async with trio.open_nursery() as nursery:
        context = Context(nursery, "https://tailnet.example.org", "token")
        context.counters.failed["ssh"] += 2
        with context.counters.session(Kind.SSH, a_stream()):
            text = prometheus_text(context)
    assert 'agent_sessions{kind="ssh"} 1.0' in text
    assert 'agent_connections_failed_total{service="ssh"} 2.0' in text


def test_a_manifest_without_its_secrets() -> None:
    assert manifest_shown(None) == {}
    shown = manifest_shown(
        Manifest(
            agent_name="main",
            environment_variables={"API_KEY": "hidden"},
            secrets=[{"env_name": "TOKEN", "value": b"hidden"}],
        )
    )
    assert shown["agent_name"] == "main"
    assert shown["environment_variables"].keys() == {"API_KEY"}
    assert "hidden" not in str(shown)
    assert "aGlkZGVu" not in str(shown)
