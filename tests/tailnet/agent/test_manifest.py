"""A manifest as an agent reads it: units, bounds, and what servers of other ages leave out."""

from typing import Any

import pytest

from tailnet.agent import manifest as manifest_module
from tailnet.agent.manifest import MAX_METADATA, MAX_SCRIPT_BYTES, MAX_SCRIPTS, Secret, read_manifest
from tailnet.errors import TransportError
from tailnet.proto import convert
from tailnet.proto.generated import agent_pb2 as agent

ID = bytes(range(16))


def a_manifest(**parts: Any) -> agent.Manifest:
    return agent.Manifest(agent_id=ID, **parts)


def test_the_least_that_a_server_says() -> None:
    made = read_manifest(a_manifest())
    assert bytes(made.agent_id) == ID
    assert (made.scripts, made.metadata, made.checks, made.secrets, made.variables) == ((), (), (), (), {})
    assert (made.is_direct, made.force_websocket) == (True, False)


def test_what_the_deployment_says_of_connections() -> None:
    made = read_manifest(a_manifest(disable_direct_connections=True, derp_force_websockets=True))
    assert (made.is_direct, made.force_websocket) == (False, True)


@pytest.mark.parametrize("wrong", [b"", bytes(16), b"x"])
def test_a_manifest_of_nobody(wrong: bytes) -> None:
    with pytest.raises(TransportError, match="names no agent"):
        read_manifest(agent.Manifest(agent_id=wrong))


@pytest.mark.parametrize(
    ("nanos", "seconds"), [(10, 10.0), (0, 0.0), (10_000_000_000, 10.0), (-5, 0.0), (86_400_000, 86_400.0)]
)
def test_intervals_of_metadata_are_numbers_of_seconds(nanos: int, seconds: float) -> None:
    description = agent.WorkspaceAgentMetadata.Description(
        key="cpu", script="uptime", interval=convert.duration_from_nanos(nanos), timeout=convert.duration_from_nanos(3)
    )
    (made,) = read_manifest(a_manifest(metadata=[description])).metadata
    assert (made.interval_seconds, made.timeout_seconds) == (seconds, 3.0)


def test_a_script() -> None:
    script = agent.WorkspaceAgentScript(
        script="echo", timeout=convert.duration(1.5), cron=" 0 3 * * * ", run_on_stop=True
    )
    (made,) = read_manifest(a_manifest(scripts=[script])).scripts
    assert (made.timeout_seconds, made.cron, made.run_on_start, made.run_on_stop) == (1.5, "0 3 * * *", False, True)
    assert made.name


def test_apps_with_a_check_alone() -> None:
    check = agent.WorkspaceApp.Healthcheck(url="http://localhost:1", interval=convert.duration(0), threshold=0)
    apps = [
        agent.WorkspaceApp(id=b"1" * 16, slug="one", healthcheck=check, health=agent.WorkspaceApp.INITIALIZING),
        agent.WorkspaceApp(id=b"2" * 16, slug="two", health=agent.WorkspaceApp.DISABLED),
        agent.WorkspaceApp(id=b"3" * 16, slug="three", healthcheck=check, health=agent.WorkspaceApp.DISABLED),
    ]
    (made,) = read_manifest(a_manifest(apps=apps)).checks
    assert (made.name, made.interval_seconds, made.threshold) == ("one", 1.0, 1), "no request without end"


def test_what_is_too_much_is_left_out() -> None:
    scripts = [agent.WorkspaceAgentScript(script="x" * (MAX_SCRIPT_BYTES + 1))]
    scripts += [agent.WorkspaceAgentScript(script=str(number)) for number in range(MAX_SCRIPTS + 5)]
    metadata = [agent.WorkspaceAgentMetadata.Description(key=str(number)) for number in range(MAX_METADATA + 5)]
    made = read_manifest(a_manifest(scripts=scripts, metadata=metadata))
    assert [script.text for script in made.scripts] == [str(number) for number in range(MAX_SCRIPTS)]
    assert len(made.metadata) == MAX_METADATA


def test_variables_that_no_process_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_ENVIRONMENT_BYTES", 1_000)
    given = {"GOOD": "yes", "": "x", "A=B": "x", "NUL": "a\0b", "LONG": "x" * 200_000}
    assert read_manifest(a_manifest(environment_variables=given)).variables == {"GOOD": "yes"}
    many = {f"V{number}": "x" * 100 for number in range(20)}
    assert len(read_manifest(a_manifest(environment_variables=many)).variables) == 9


def test_secrets_are_files_and_variables_with_the_same_bounds() -> None:
    secrets = [
        agent.WorkspaceSecret(env_name="TOKEN", value=b"one\xff"),
        agent.WorkspaceSecret(env_name="BOTH", file_path="~/both", value=b"two"),
        agent.WorkspaceSecret(env_name="LONG", value=b"x" * 200_000),
        agent.WorkspaceSecret(file_path="key", value=b"a\0b"),
    ]
    made = read_manifest(a_manifest(environment_variables={"TOKEN": "of the template"}, secrets=secrets))
    assert made.secret_variables == {"TOKEN": "one\udcff", "BOTH": "two"}
    assert made.secrets == (Secret("~/both", b"two"), Secret("key", b"a\0b"))
    assert "two" not in repr(made)
