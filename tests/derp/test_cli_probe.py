"""`derp probe` as a process: what people, programs and Prometheus get, and the exit status."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families

from derp.keys import NodePrivate
from derp.map import DERPMap
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS, run_derp
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
    documents = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.status == 0
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
    assert three.status == 2


async def test_again_and_again_with_a_map_that_goes_away(tmp_path: Path) -> None:
    async with open_relay_here(stun_enabled=False) as server:
        path = written(map_of(node_of(server, 901)), tmp_path)
        command = [sys.executable, "-m", "derp", "probe", "--json", "--every=1", path, "--delay-packets=0"]
        with trio.fail_after(PATIENCE_SECONDS):
            process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
            )
            assert process.stdout is not None
            assert process.stderr is not None
            async with process.stdout, process.stderr:
                out = err = b""
                while out.count(b"\n") < 3:
                    out += await process.stdout.receive_some()
                await trio.Path(path).unlink()
                while b"last good map" not in err:
                    err += await process.stderr.receive_some()
                while out.count(b"\n") < 6:
                    out += await process.stdout.receive_some()
                process.send_signal(signal.SIGINT)
                await process.wait()
    assert all(json.loads(line)["outcome"] == "good" for line in out.splitlines()[:6])


async def test_wrong_questions_are_status_2(tmp_path: Path) -> None:
    both = await run_derp("probe", "--once", "--every=5", "https://relay.example")
    assert (both.status, both.out) == (2, "")
    missing = await run_derp("probe", str(tmp_path / "none"))
    assert missing.status == 2
