"""Containers as engines tell of them: an engine that is a script, and what is wrong with engines."""

from pathlib import Path

import pytest
import trio

from tailnet.agent import containers
from tailnet.agent.containers import ContainerError, list_containers, run_command
from tests.support.terminals import is_running


async def test_the_list(engine: Path) -> None:
    assert await list_containers() == [
        {
            "created_at": "2026-01-02T03:04:05.6Z",
            "id": "abc",
            "name": "web",
            "image": "nginx:1",
            "labels": {"devcontainer.local_folder": "/src"},
            "running": True,
            "ports": [
                {"port": 53, "network": "udp"},
                {"port": 80, "network": "tcp", "host_ip": "0.0.0.0", "host_port": 8080},
            ],
            "status": "running",
            "volumes": {"/data": "/var/data"},
        }
    ]
    (engine / "ps").write_text("")
    assert await list_containers() == []


@pytest.mark.parametrize("answer", ["", "{", "[{}]", "[5]", "{}x", "[" * 100_000, '[{"State": []}]'])
async def test_an_answer_that_is_none(engine: Path, answer: str) -> None:
    (engine / "inspect").write_text(answer)
    with pytest.raises(ContainerError, match="cannot be read"):
        await list_containers()


async def test_an_engine_that_fails_or_is_not_there(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (engine / "ps").unlink()
    with pytest.raises(ContainerError, match=r"^docker: cat: .*No such file"):
        await list_containers()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ContainerError, match="no container engine"):
        await list_containers()
    with pytest.raises(ContainerError, match="docker cannot be started"):
        await run_command(["/nowhere/docker"])
    with pytest.raises(ContainerError, match="sh cannot be started"):
        await run_command(["/bin/sh", "a\0b"])


async def test_the_end_of_what_a_program_complained_of() -> None:
    with pytest.raises(ContainerError, match=r"^sh: .*999 1000$"):
        await run_command(["/bin/sh", "-c", "seq -s ' ' 1000 >&2; exit 1"])


async def test_what_a_program_began_ends_with_it(tmp_path: Path) -> None:
    """Both are in one group."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_command, ["/bin/sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid; wait"])
            while not (tmp_path / "pid").exists() or not (text := (tmp_path / "pid").read_text()):  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        while is_running(int(text)):  # noqa: ASYNC110  # the kernel tells nobody
            await trio.sleep(0.01)


async def test_one_that_is_silent_or_says_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(60):
        with pytest.raises(ContainerError, match=r"sleep did not answer within 0.05 s"):
            await run_command(["/bin/sleep", "1000"], 0.05)
        monkeypatch.setattr(containers, "MAX_ANSWER_BYTES", 1000)
        with pytest.raises(ContainerError, match="more than 1000 bytes"):
            await run_command(["/bin/cat", "/dev/zero"])
