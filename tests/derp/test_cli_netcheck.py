"""`derp netcheck` as a process: table, JSON, maps and URLs, repetition, exit status."""

import json
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import trio

from derp.map import DERPMap, DERPNode
from tests.support.command import ENVIRONMENT, PATIENCE_SECONDS, run_derp
from tests.support.inprocess import HOST, map_of, open_regions, open_relay_here, port_of


def written(derp_map: DERPMap, folder: Path) -> str:
    path = folder / "map.json"
    path.write_text("// ours\n" + json.dumps(derp_map.to_json()))
    return str(path)


async def test_a_table_for_people(tmp_path: Path) -> None:
    async with open_regions(901, 902) as (_, derp_map):
        ran = await run_derp("netcheck", written(derp_map, tmp_path))
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert "UDP             yes" in lines
    assert any(line.startswith(f"IPv4            yes, seen as {HOST}:") for line in lines)
    rows = {line.split()[0].lstrip("*") or line.split()[1]: line for line in lines if "Region 90" in line}
    assert set(rows) == {"901", "902"}
    assert sum(line.startswith("* 90") for line in lines) == 1
    assert all(" ms" in row for row in rows.values())


async def test_json_for_programs(tmp_path: Path) -> None:
    async with open_regions(901, 902) as (_, derp_map):
        ran = await run_derp("netcheck", "--json", written(derp_map, tmp_path))
    document = json.loads(ran.out)
    assert document["udp"] is True
    assert document["preferred"] in (901, 902)
    assert set(document["region_seconds"]) == {"901", "902"}
    assert document["verdicts"] == []


async def test_one_relay_by_its_url() -> None:
    async with open_relay_here() as server:
        assert server.tls is not None
        url = f"https://{HOST}:{port_of(server)}"
        pin = ["--pin", server.tls.pin]
        good = await run_derp("netcheck", "--json", url, *pin, "--stun-port", str(port_of(server, "stun")))
        unpinned = await run_derp("netcheck", url, "--stun-port=-1")
    assert json.loads(good.out)["preferred"] == 900
    assert unpinned.status == 1
    assert "! region 900 (custom) cannot be used" in unpinned.out
    assert "self-signed" in unpinned.out


async def test_a_relay_that_is_not_there_although_some_program_answers_stun() -> None:
    async with open_relay_here() as server:
        stun = str(port_of(server, "stun"))
        with socket.create_server((HOST, 0)) as unused:
            nobody = f"http://{HOST}:{unused.getsockname()[1]}"
        gone = await run_derp("netcheck", nobody, "--stun-port", stun)
        in_json = await run_derp("netcheck", "--json", nobody, "--stun-port", stun)
        # A pin of another certificate: somebody answers, and it is not the relay that was meant.
        other = await run_derp(
            "netcheck", f"https://{HOST}:{port_of(server)}", "--stun-port", stun, "--pin", f"sha256-raw:{'0' * 64}"
        )
    assert (gone.status, in_json.status, other.status) == (1, 1, 1)
    assert "UDP             yes" in gone.out
    assert "! STUN answers, but no relay: " in gone.out
    assert "nothing listens on that port" in gone.out
    [verdict] = json.loads(in_json.out)["verdicts"]
    assert verdict.startswith("STUN answers, but no relay: ")
    assert "is not the pinned one" in other.out


async def test_mistakes_in_the_map_are_mentioned(tmp_path: Path) -> None:
    async with open_regions(901) as (_, derp_map):
        region = derp_map.regions[901]
        wrong = replace(region, nodes=(replace(region.nodes[0], region_id=0),))
        ran = await run_derp("netcheck", written(DERPMap({901: wrong}), tmp_path))
    assert "mistake in the map: Regions.901.Nodes[0].RegionID: is missing" in ran.err


async def test_again_and_again_until_interrupted(tmp_path: Path) -> None:
    async with open_regions(901) as (_, derp_map):
        command = [sys.executable, "-m", "derp", "netcheck", "--json", "--every=1", written(derp_map, tmp_path)]
        with trio.fail_after(PATIENCE_SECONDS):
            process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
            )
            out = b""
            assert process.stdout is not None
            assert process.stderr is not None
            async with process.stdout, process.stderr:
                while out.count(b"\n") < 2:
                    out += await process.stdout.receive_some()
                process.send_signal(signal.SIGINT)
                status = await process.wait()
    homes = [json.loads(line)["preferred"] for line in out.splitlines()[:2]]
    assert homes == [901, 901]
    assert status == 130


async def test_a_map_nobody_answers_to_is_a_failure(tmp_path: Path) -> None:
    dead = DERPNode(name="901a", region_id=901, host_name=HOST, ipv4=HOST, ipv6="none", derp_port=1, stun_port=-1)
    ran = await run_derp("netcheck", written(map_of(dead), tmp_path))
    assert ran.status == 1
    assert "nothing listens on that port" in ran.out


async def test_a_missing_map_is_a_wrong_question() -> None:
    ran = await run_derp("netcheck", "/nowhere/map.json")
    assert ran.status == 2
    assert "cannot be read" in ran.err
    fetched = await run_derp("netcheck", f"http://{HOST}:1/map")
    assert (fetched.status, len(fetched.err.splitlines())) == (1, 1)
    assert fetched.err.startswith(f"derp: http://{HOST}:1/map cannot be reached")


async def test_a_map_without_regions_is_a_wrong_question() -> None:
    ran = await run_derp("netcheck", "-", stdin=b"{}")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "derp: -: the map has no regions, so there is nothing to measure\n"


async def test_a_home_that_the_map_does_not_have_is_none(tmp_path: Path) -> None:
    async with open_regions(901) as (_, derp_map):
        region = derp_map.regions[901]
        wrong = replace(region, nodes=(replace(region.nodes[0], region_id=9),))
        ran = await run_derp("netcheck", written(DERPMap({901: wrong}), tmp_path))
    assert ran.status == 1
    assert "home            9, which the map does not have" in ran.out.splitlines()
    assert "because         region 9 at " in ran.out
    assert "choose it as home, where nobody finds them" in ran.out
