"""`tailnet serve` as a process: what it prints works when it is tried, and a signal ends it in order."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import trio

from tailnet.cli.root import run
from tailnet.cli.serve import make_demo
from tailnet.store.store import Store
from tailnet.store.writer import SWITCH_SECONDS
from tests.support.seeds import fill, user_token

SERVE = [sys.executable, "-m", "tailnet", "serve", "--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"]


@asynccontextmanager
async def serving(*args: str) -> AsyncIterator[tuple[trio.Process, list[str]]]:
    """The process and the lines it printed until it was up; killed at the end if it is still there."""
    process = await trio.lowlevel.open_process([*SERVE, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with trio.fail_after(60):
            printed = ""
            while "demo agent" not in printed and '"serving"' not in printed:
                chunk = await process.stdout.receive_some()
                assert chunk, printed + (await process.stderr.receive_some()).decode()
                printed += chunk.decode()
            yield process, printed.splitlines()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
            await process.stderr.aclose()


async def lines_of(stream: trio.abc.ReceiveStream) -> list[str]:
    """What is written to a stream until it ends."""
    received = b""
    while chunk := await stream.receive_some():
        received += chunk
    return received.decode().splitlines()


async def test_dev_prints_lines_that_work() -> None:
    async with serving("--dev") as (process, lines):
        assert lines[0].startswith("listening on http://127.0.0.1:")
        assert lines[1].startswith("answering STUN on 127.0.0.1:")
        url = lines[0].removeprefix("listening on ")
        folder = Path(lines[2].removeprefix("store sqlite:///")).parent
        assert folder.exists()
        [asked] = [line for line in lines if "Coder-Session-Token" in line]
        _, _, header, address = shlex.split(asked, comments=True)
        token = header.removeprefix("Coder-Session-Token: ")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/readyz")).status_code == 200
            response = await client.get(address, headers={"Coder-Session-Token": token})
            assert list(response.json()["derp_map"]["Regions"]) == ["999"]
            assert (await client.get(address)).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert not folder.exists()
        assert process.stderr is not None
        log = [json.loads(line)["logger"] for line in await lines_of(process.stderr)]
        # The store's one line, and not what the library that makes its tables says of itself.
        assert "tailnet.store" in log
        assert [logger for logger in log if not logger.startswith(("tailnet", "derp"))] == []


@pytest.mark.parametrize("flags", [(), ("--tls-self-signed",), ("--listen", "[::]:0")])
async def test_what_to_try_works_when_it_is_pasted(flags: tuple[str, ...]) -> None:
    async with serving("--dev", *flags) as (_, lines):
        commands = lines[lines.index("try:") + 1 :]
        assert len(commands) == 4
        for command in commands[:-1]:
            assert re.fullmatch(r"  \S.*\S  # \S.*", command)
            done = await trio.run_process(
                ["bash", "-c", f"set -e; {command}"], capture_stdout=True, capture_stderr=True
            )
            assert done.stdout
        # Either agent takes these: tests/tailnet/cli/test_agent.py has ours.
        shown = commands[-1].replace("tailnet agent", f"{sys.executable} -c 'import os; print(os.environ)'")
        done = await trio.run_process(["bash", "-c", shown], capture_stdout=True)
        assert b"'CODER_AGENT_URL': 'http" in done.stdout
        assert b"'CODER_AGENT_TOKEN': '" in done.stdout


@pytest.mark.stores("sqlite")  # whose URL has nothing to hide
async def test_json_for_programs(store: Store, store_url: str) -> None:
    fill(store)
    async with serving("--json", "--store", store_url) as (process, lines):
        events = [json.loads(line) for line in lines]
        assert [event["event"] for event in events] == ["listening", "listening", "serving"]
        assert events[-1]["store"] == store_url
        url = f"http://127.0.0.1:{events[0]['port']}/api/v2/workspaceagents/connection"
        async with httpx.AsyncClient() as client:
            assert (await client.get(url, headers={"Authorization": f"Bearer {user_token('bob')}"})).status_code == 200
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0


async def test_a_map_file_is_watched_and_reloaded(store_url: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"Regions": {}}')
    async with serving("--dev", "--json", "--derp-map", str(path)) as (process, lines):
        events = {event["event"]: event for event in map(json.loads, lines)}
        port = json.loads(lines[0])["port"]
        url = f"http://127.0.0.1:{port}/api/v2/workspaceagents/connection"
        headers = {"Coder-Session-Token": events["demo"]["user_token"]}
        async with httpx.AsyncClient(headers=headers) as client:
            for regions, wanted in (("null", []), ("", ["999"])):
                text = '{"Regions": {"999": null}}' if regions else '{"Regions": {}}'
                await trio.Path(path).write_text(text)
                process.send_signal(signal.SIGHUP)
                while list((await client.get(url)).json()["derp_map"]["Regions"]) != wanted:
                    await trio.lowlevel.checkpoint()


async def test_a_map_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"Regions": {"1": {"RegionID": 2}}}')
    done = await trio.run_process(
        [*SERVE, "--dev", "--derp-map", str(path)], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 2
    lines = [line for line in map(json.loads, done.stderr.decode().splitlines()) if line.get("event") == "fatal"]
    assert len(lines) == 1
    assert f"derp_map: {path}: has errors: Regions.1.RegionID: is 2" in lines[0]["message"]
    assert b"Traceback" not in done.stderr


def test_the_demo_works_and_may_be_made_twice(store_url: str) -> None:
    first, second = make_demo(store_url), make_demo(store_url)
    store = Store.open(store_url)
    for demo in (first, second):
        agent = store.get_agent_by_token(UUID(demo.agent_token))
        assert agent is not None
        assert (str(agent.id), agent.owner_name) == (demo.agent_id, demo.username)
        assert len(demo.user_token) == 33
    store.close()


@pytest.mark.parametrize("args", [["--dev", "--no-derp", "--json"]])
async def test_switches_can_be_switched_off(args: list[str]) -> None:
    async with serving(*args) as (_, lines):
        port = json.loads(lines[0])["port"]
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/derp")).status_code == 404


async def test_a_server_without_any_relay_says_so_once(store_url: str) -> None:
    async with serving("--no-derp", "--json", "--store", store_url) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert process.stderr is not None
        entries = [json.loads(line) for line in await lines_of(process.stderr)]
    [loud] = [entry for entry in entries if "relay" in entry["message"] and entry["level"] == "warning"]
    assert "will not meet" in loud["message"]
    for remedy in ("--derp", "--derp-map", "--derp-map-url"):
        assert remedy in loud["message"]


async def test_settings_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text('announcement_banners = "one"\n')
    async with serving("--dev", "--json", "--config", str(path)) as (process, _):
        assert process.stderr is not None
        said = b""
        for text, wanted in (
            ('announcement_banners = "two"\nqueue_depth = 7\n', b"only from the next start on: --relay-queue-depth"),
            ("announcement_banners = [1]\n", b"the settings stay as they were: "),
        ):
            await trio.Path(path).write_text(text)
            process.send_signal(signal.SIGHUP)
            with trio.fail_after(60):
                while wanted not in said:
                    said += await process.stderr.receive_some()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_store_that_lets_us_not_in_ends_the_start_and_shows_no_password(tmp_path: Path) -> None:
    for url in (f"postgresql://alice:hunter2@/tailnet?host={tmp_path}", "alice:hunter2@db", "postgresql://a:hunter2@h"):
        done = await trio.run_process([*SERVE, "--store", url], capture_stdout=True, capture_stderr=True, check=False)
        said = (done.stdout + done.stderr).decode()
        assert done.returncode != 0
        assert "store" in said
        assert "Traceback" not in said
        assert "hunter2" not in said


def test_threads_of_the_store_take_short_turns(monkeypatch: pytest.MonkeyPatch, store_url: str) -> None:
    """A read takes several turns, each of which may have to wait for the writer's thread to end its own."""
    seen: list[float] = []
    before = sys.getswitchinterval()
    monkeypatch.setattr(trio, "run", lambda *_: seen.append(sys.getswitchinterval()))
    try:
        run(["serve", "--listen", "127.0.0.1:0", "--store", store_url])
    finally:
        sys.setswitchinterval(before)
    assert seen == [pytest.approx(SWITCH_SECONDS)]
