"""`derp probe` as a process: what people, programs and Prometheus get, and the exit status."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from derp.cli_probe import exposure
from derp.keys import MeshKey, NodePrivate
from derp.map import DERPMap, DERPNode, DERPRegion
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS, Ran, run_derp
from tests.support.inprocess import HOST, map_of, node_of, open_regions, open_relay_here, port_of

QUICK = ["--delay-packets=2", "--bandwidth-bytes=100000"]


def written(derp_map: DERPMap, folder: Path) -> str:
    path = folder / "map.json"
    path.write_text(json.dumps(derp_map.to_json()))
    return str(path)


async def test_all_good_is_status_0(tmp_path: Path) -> None:
    async with open_regions(901, 902) as (_, derp_map):
        ran = await run_derp("probe", "--once", written(derp_map, tmp_path), *QUICK)
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[-1] == "10 probes, none bad"
    assert all(line.startswith("good ") for line in lines[:-1])
    assert any("Mbit/s" in line for line in lines)
    assert any("certificate ends in" in line for line in lines)


async def test_one_relay_by_its_url_and_pin() -> None:
    async with open_relay_here() as server:
        assert server.tls is not None
        url, stun = f"https://{HOST}:{port_of(server)}", f"--stun-port={port_of(server, 'stun')}"
        ran = await run_derp("probe", "--json", url, stun, f"--pin={server.tls.pin}", *QUICK)
        unpinned = await run_derp("probe", url, stun, *QUICK)
    *documents, end = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.status == 0
    assert (end["event"], end["probes"], end["good"], end["bad"], end["skipped"]) == ("run", 5, 5, 0, 0)
    assert end["seconds"] > 0
    assert [one["kind"] for one in documents] == ["tls", "stun", "packet", "queue_delay", "bandwidth"]
    assert all(one["outcome"] == "good" for one in documents)
    assert unpinned.status == 1
    assert "self-signed" in unpinned.out
    assert "3 probes, 2 bad" in unpinned.out


async def test_prometheus_gets_a_file_that_is_written_whole(tmp_path: Path) -> None:
    async with open_relay_here() as server:
        path = written(map_of(node_of(server, 901), node_of(server, 902, derp_port=1)), tmp_path)
        metrics = tmp_path / "derp.prom"
        ran = await run_derp("probe", path, *QUICK, "--prometheus", str(metrics))
        to_stdout = await run_derp("probe", path, *QUICK, "--prometheus=-")
        nowhere = await run_derp("probe", path, *QUICK, "--prometheus=/nowhere/x")
    assert ran.status == to_stdout.status == 1
    for text in (metrics.read_text(), to_stdout.out):
        families = {family.name: family for family in text_string_to_metric_families(text)}
        up = {(one.labels["kind"], one.labels["node"]): one.value for one in families["derp_probe_up"].samples}
        assert up["packet", "901a"] == 1
        assert up["packet", "902a"] == 0
    assert sorted(os.listdir(tmp_path)) == ["derp.prom", "map.json"]
    assert nowhere.status == 2
    assert "cannot be written" in nowhere.err


async def test_a_relay_with_admission_is_probed_with_admitted_keys(tmp_path: Path) -> None:
    keys = NodePrivate.generate(), NodePrivate.generate()
    files = []
    for number, key in enumerate(keys):
        path = tmp_path / f"{number}.key"
        path.write_text(json.dumps({"PrivateKey": key.text()}))
        path.chmod(0o600)
        files.append(f"--key-file={path}")
    admitted = frozenset(key.public().raw for key in keys)
    async with open_relay_here(allow_keys=admitted) as server:
        source = written(map_of(node_of(server, 901)), tmp_path)
        stranger = await run_derp("probe", source, *QUICK)
        one_key = await run_derp("probe", source, *QUICK, files[0])
        two_keys = await run_derp("probe", source, *QUICK, *files)
    assert (stranger.status, one_key.status, two_keys.status) == (1, 0, 0)
    three = await run_derp("probe", source, *files, files[0])
    same = await run_derp("probe", source, files[0], files[0])
    assert (three.status, same.status) == (2, 2)
    assert "twice the same key" in same.err


async def test_a_relay_with_admission_is_probed_with_the_mesh_key(tmp_path: Path) -> None:
    mesh_file, wrong_file = tmp_path / "mesh.key", tmp_path / "wrong.key"
    mesh_file.write_text("5f" * 32 + "\n")
    wrong_file.write_text("60" * 32)
    async with (
        open_relay_here(allow_keys=frozenset(), mesh_key=MeshKey(b"\x5f" * 32)) as server,
        open_relay_here() as foreign,
    ):
        source = written(map_of(node_of(server, 901), node_of(foreign, 902)), tmp_path)
        admitted = await run_derp("probe", source, *QUICK, "--region=901", f"--mesh-psk-file={mesh_file}")
        refused = await run_derp("probe", source, *QUICK, "--region=901", f"--mesh-psk-file={wrong_file}")
        # The relays of another region are not shown the key, unless somebody says so.
        careless = await run_derp("probe", source, *QUICK, f"--mesh-psk-file={mesh_file}")
        both = await run_derp("probe", source, *QUICK, "--region=901", "--region=902", f"--mesh-psk-file={mesh_file}")
    assert (admitted.status, refused.status, careless.status, both.status) == (0, 1, 2, 0)
    assert "5 probes, none bad" in admitted.out
    assert "does not admit" in refused.out
    assert "--region" in careless.err
    assert "10 probes, none bad" in both.out
    for ran in (admitted, refused, careless, both):
        assert "5f5f5f" not in ran.out + ran.err
    wrong_file.write_text("5f" * 31)
    malformed = await run_derp("probe", source, "--region=901", f"--mesh-psk-file={wrong_file}")
    assert malformed.status == 2
    assert "64 hex digits" in malformed.err
    assert "5f5f" not in malformed.err


@asynccontextmanager
async def open_prober(*arguments: str) -> AsyncIterator[trio.Process]:
    """`derp probe ARGUMENTS` with pipes, ended by the test or else killed."""
    command = [sys.executable, "-m", "derp", "probe", *arguments]
    with trio.fail_after(PATIENCE_SECONDS):
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with process.stdout, process.stderr:
                yield process
        finally:
            if process.poll() is None:
                process.kill()


async def read_until(stream: trio.abc.ReceiveStream | None, enough: Callable[[str], bool]) -> str:
    assert stream is not None
    text = ""
    while not enough(text):
        received = await stream.receive_some()
        assert received, text
        text += received.decode()
    return text


async def fetch(port: int, path: str = "/metrics") -> tuple[int, str]:
    async with await trio.open_tcp_stream(HOST, port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        head, _, body = b"".join([part async for part in stream]).decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def runs(text: str) -> int:
    return text.count('"event": "run"')


async def test_again_and_again_with_a_map_that_goes_away(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as server:
        derp_map = map_of(node_of(server, 901))
        path = written(replace(derp_map, regions={**derp_map.regions, 902: DERPRegion(902, "dead", "Dead")}), tmp_path)
        async with open_prober("--json", "--every=1", path, "--delay-packets=0") as process:
            err = await read_until(process.stderr, lambda text: "mistake in the map" in text)
            out = await read_until(process.stdout, lambda text: runs(text) == 1)
            await trio.Path(path).unlink()
            err += await read_until(process.stderr, lambda text: "last good map" in text)
            out += await read_until(process.stdout, lambda text: runs(text) == 1)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    documents = [json.loads(line) for line in out.splitlines()]
    kinds = ["tls", "packet", "bandwidth"]
    probes = [one for one in documents if one["event"] == "probe"]
    assert [one["kind"] for one in probes] == kinds * runs(out)
    assert err.count("Regions.902") == 1  # once for a map, not for each run
    assert all(one["outcome"] == "good" for one in probes)


async def test_a_monitor_fetches_the_last_run(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as staying, open_relay_here(stun_enabled=False) as leaving:
        path = written(map_of(node_of(staying, 901), node_of(leaving, 902)), tmp_path)
        options = ("--json", "--every=1", f"--listen={HOST}:0", path, "--delay-packets=0", "--bandwidth-bytes=0")
        async with open_prober(*options) as process:
            listening = json.loads(await read_until(process.stdout, lambda text: "\n" in text))
            assert (listening["kind"], listening["host"]) == ("metrics", HOST)
            port = listening["port"]
            assert await fetch(port, "/healthz") == (200, "ok\n")
            await read_until(process.stdout, lambda text: runs(text) == 1)
            status, first = await fetch(port)
            await leaving.drain()
            # The run in which it left may have begun before.
            await trio.Path(path).unlink()
            await read_until(process.stdout, lambda text: runs(text) == 2)
            last = (await fetch(port))[1]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    assert status == 200
    before, after = samples(first), samples(last)
    assert before["derp_probe_up", "tls", "902a"] == before["derp_probe_up", "packet", "902a"] == 1
    assert after["derp_probe_up", "tls", "902a"] == after["derp_probe_up", "packet", "902a"] == 0
    assert after["derp_probe_up", "tls", "901a"] == after["derp_probe_up", "packet", "901a"] == 1
    assert after["derp_probe_runs_total", "", ""] > before["derp_probe_runs_total", "", ""] >= 1
    assert after["derp_probe_failures_total", "tls", "902a"] >= 1
    assert before["derp_probe_map_failures_total", "", ""] == 0
    assert after["derp_probe_map_failures_total", "", ""] >= 1
    assert after["derp_probe_failures_total", "tls", "901a"] == 0
    assert (
        after["derp_probe_last_run_timestamp_seconds", "", ""] > before["derp_probe_last_run_timestamp_seconds", "", ""]
    )


def samples(text: str) -> dict[tuple[str, str, str], float]:
    return {
        (one.name, one.labels.get("kind", ""), one.labels.get("node", "")): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


async def test_quiet_says_only_what_is_bad(tmp_path: Path) -> None:
    async with open_relay_here(tls=False) as server:
        # Over IPv6 there is nothing to try: the name leads nowhere, and only an IPv4 address is stated.
        good = node_of(server, 901, host_name="relay.invalid", ipv6="")
        down = node_of(server, 902, derp_port=1, stun_port=-1)
        fine = await run_derp("probe", "--quiet", written(map_of(good), tmp_path), *QUICK)
        everything = await run_derp("probe", written(map_of(good), tmp_path), *QUICK)
        bad = await run_derp("probe", "--quiet", written(map_of(good, down), tmp_path), *QUICK)
    assert fine == Ran(0, "", "")
    assert everything.out.endswith("5 probes, none bad, 1 skipped\n")
    *lines, total = bad.out.splitlines()
    assert bad.status == 1
    assert [line.split()[:4] for line in lines] == [["bad", "r902", "902a", "packet"]]
    assert total == "6 probes, 1 bad, 1 skipped"


async def test_a_machine_without_a_way_to_relays_says_so_and_blames_nobody(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net"]  # a network without any address
    if shutil.which("unshare") is None or (await trio.run_process([*alone, "true"], check=False)).returncode:
        pytest.skip("this machine does not let us make a network namespace")
    node = DERPNode("901a", 901, host_name="relay.invalid", ipv4="192.0.2.1", ipv6="2001:db8::1")
    command = [*alone, sys.executable, "-m", "derp", "probe", "--quiet", "--json", written(map_of(node), tmp_path)]
    with trio.fail_after(PATIENCE_SECONDS):
        quiet = await trio.run_process(command, check=False, capture_stdout=True, env=ENVIRONMENT)
        command.remove("--quiet")
        ran = await trio.run_process(command, check=False, capture_stdout=True, env=ENVIRONMENT)
    assert quiet.returncode == ran.returncode == 1
    *probes, end = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [json.loads(line)["skipped"] for line in quiet.stdout.splitlines()] == [4]
    assert (end["good"], end["bad"], end["skipped"]) == (0, 0, 4)
    assert [one["kind"] for one in probes] == ["tls", "stun", "stun", "packet"]
    assert all("from here" in one["reason"] for one in probes)


async def test_runs_that_take_longer_than_every_are_told_once(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as server:
        path = written(map_of(node_of(server, 901)), tmp_path)
        async with open_prober("--quiet", "--json", "--every=1", path, "--delay-packets=12") as process:
            err = await read_until(process.stderr, lambda text: "\n" in text)
            await read_until(process.stdout, lambda text: runs(text) == 3)
            process.send_signal(signal.SIGTERM)
            await process.wait()
            assert process.stderr is not None
            # A run that ends meanwhile has nobody to tell: its reader has gone.
            assert await process.stderr.receive_some() in (b"", b"derp: cannot write the output: Broken pipe\n")
    assert "--every 1 is not kept" in err


def test_an_address_that_others_reach_is_told() -> None:
    assert exposure("127.0.0.1", 9101) is exposure("127.3.2.1", 9101) is exposure("::1", 9101) is None
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        told = exposure(host, 9101)
        assert told is not None
        assert host in told


async def test_a_reader_that_has_seen_enough_ends_it(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as server:
        path = written(map_of(node_of(server, 901)), tmp_path)
        async with open_prober("--json", "--every=1", path, "--delay-packets=0", "--bandwidth-bytes=0") as process:
            await read_until(process.stdout, lambda text: runs(text) == 1)
            assert process.stdout is not None
            await process.stdout.aclose()
            assert await process.wait() == 141
            assert process.stderr is not None
            # A run that ends meanwhile has nobody to tell: its reader has gone.
            assert await process.stderr.receive_some() in (b"", b"derp: cannot write the output: Broken pipe\n")


async def test_columns_stand_below_each_other_whatever_the_names(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as server:
        nodes = [node_of(server, 901, name=name) for name in ("a-relay-with-a-long-name", "b")]
        ran = await run_derp("probe", written(map_of(*nodes), tmp_path), "--delay-packets=0", "--bandwidth-bytes=0")
    *lines, _ = ran.out.splitlines()
    assert any("b -> a-relay-with-a-long-name packet" in line for line in lines)
    kinds = {line.index(" tls " if " tls " in line else " packet ") for line in lines}
    assert len(kinds) == 1


async def test_wrong_questions_are_status_2(tmp_path: Path) -> None:
    url = "https://relay.example"
    wrong: dict[tuple[str, ...], str] = {
        ("--once", "--every=5", url): "--once and --every",
        (str(tmp_path / "none"),): "cannot be read",
        ("--listen=127.0.0.1:0", url): "needs --every",
        ("--every=5", "--listen=9101", url): "an address with a port",
        ("--json", "--prometheus=-", url): "stdout",
        ("--region=77", url): "--region 77: not in",
        (written(DERPMap(), tmp_path),): "nothing to probe",
    }
    for arguments, sentence in wrong.items():
        ran = await run_derp("probe", *arguments)
        assert (ran.status, ran.out) == (2, ""), arguments
        assert sentence in ran.err


async def test_a_port_that_is_taken_is_status_1() -> None:
    with trio.socket.socket() as taken:
        await taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = await run_derp("probe", "--every=5", f"--listen={HOST}:{port}", "https://relay.example")
    assert (ran.status, ran.out) == (1, "")
    assert f"cannot listen on TCP {HOST}:{port}" in ran.err


async def test_a_mistake_in_the_map_is_named(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as server:
        derp_map = map_of(node_of(server, 901))
        dead = replace(derp_map, regions={**derp_map.regions, 902: DERPRegion(902, "dead", "Dead")})
        ran = await run_derp("probe", written(dead, tmp_path), *QUICK)
    assert ran.status == 0
    assert "mistake in the map: " in ran.err
    assert "902" in ran.err


async def test_an_address_of_a_map_that_does_not_answer_is_status_1() -> None:
    ran = await run_derp("probe", f"http://{HOST}:1/map.json")
    assert (ran.status, ran.out) == (1, "")
    assert f"{HOST}:1" in ran.err
