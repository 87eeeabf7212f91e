"""Metadata: what small scripts print, at their intervals, bounded, and told together."""

import pytest
import trio

from tailnet.agent import metadata as metadata_module
from tailnet.agent.manifest import MetadataScript
from tailnet.agent.metadata import MAX_VALUE_BYTES, Metadata
from tests.support.agents import FakeRpc, open_context


async def collect(*scripts: MetadataScript, rounds: int = 1) -> list[dict[str, tuple[str, str]]]:
    """What the coordinator is told in so many rounds."""
    rpc = FakeRpc()
    with trio.fail_after(60):
        async with open_context() as context, trio.open_nursery() as nursery:
            nursery.start_soon(Metadata(scripts, context, rpc.control()).run)
            said = await rpc.wait_said("BatchUpdateMetadata", rounds)
            nursery.cancel_scope.cancel()
    assert all(value.result.collected_at.seconds for each in said for value in each.metadata)
    return [{value.key: (value.result.value, value.result.error) for value in each.metadata} for each in said[:rounds]]


def a_script(text: str, interval: float = 0, timeout: float = 30.0) -> MetadataScript:
    return MetadataScript(text, text, interval, timeout)


@pytest.mark.parametrize(
    ("text", "value", "error"),
    [
        ("echo ' 12 %'; echo noise >&2", "12 %", ""),
        ("echo so far; echo why >&2; exit 2", "so far", "it ended with 2: why"),
        ("#!/not/there", "", "it cannot be started"),
        ("echo begun; sleep 1000", "begun", "it took longer than 3 s"),
        ("yes | tr -d '\\n'", "y" * MAX_VALUE_BYTES, "it took longer than 3 s"),
        ("printf '%2047sé\\0é' x", "x\ufffd", ""),
    ],
)
async def test_a_value(text: str, value: str, error: str) -> None:
    (said,) = await collect(a_script(text, timeout=3 if "sleep" in text or "yes" in text else 30.0))
    found, problem = said[text]
    assert found == value
    assert problem.startswith(error)
    assert bool(problem) == bool(error)
    assert len(found.encode()) <= MAX_VALUE_BYTES


async def test_values_of_one_moment_go_together() -> None:
    (said,) = await collect(*(a_script(f"echo {number}") for number in range(5)))
    assert len(said) == 5


async def test_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_module, "GATHER_SECONDS", 0.01)
    said = await collect(a_script("date +%s%N", interval=0.001), a_script("true"), rounds=3)
    assert sum("true" in each for each in said) == 1, "what has no interval runs once"
    values = [each["date +%s%N"][0] for each in said if "date +%s%N" in each]
    assert len(set(values)) == len(values) >= 2
