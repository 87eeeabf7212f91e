"""`derp map` as a process: mistakes with their places, a map at a glance, a map for a running relay."""

import json
from pathlib import Path

import pytest
import trio

from derp.map import DERPHomeParams, DERPMap
from tests.support.command import Ran, run_derp
from tests.support.inprocess import HOST, map_of, node_of, open_relay_here, port_of
from tests.support.maps import map_text, region

TOML = """
# the field's commonest mistake: the node has no RegionID
[Regions.900]
RegionID = 900
RegionCode = "fra"
RegionName = "Frankfurt"
[[Regions.900.Nodes]]
Name = "900a"
HostName = "relay.example"
"""


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "map"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


async def test_a_good_map_has_no_mistakes(tmp_path: Path) -> None:
    ran = await run_derp("map", "lint", written(tmp_path, b"// two\n" + map_text(901, 902)))
    assert (ran.status, ran.out) == (0, "no mistakes\n")


async def test_a_mistake_is_named_with_its_place_in_toml_too(tmp_path: Path) -> None:
    path = written(tmp_path, TOML)
    ran = await run_derp("map", "lint", path)
    assert ran.status == 1
    assert ran.out.startswith("error: Regions.900.Nodes[0].RegionID: is missing")
    as_json = await run_derp("map", "lint", "--json", path)
    assert json.loads(as_json.out)["place"] == "Regions.900.Nodes[0].RegionID"


async def test_warnings_fail_only_if_asked(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"Regions": {"901": region(901)}, "Extra": 1}))
    plain, strict = await run_derp("map", "lint", path), await run_derp("map", "lint", "--strict", path)
    assert (plain.status, strict.status) == (0, 1)
    assert plain.out == strict.out == "warning: Extra: no client knows this key\n"


async def test_a_map_from_standard_input_and_an_overlay() -> None:
    text = b'{"Regions": {"1": null}}'
    alone = await run_derp("map", "lint", "--strict", "-", stdin=text)
    over = await run_derp("map", "lint", "--strict", "--overlay", "-", stdin=text)
    assert (alone.status, over.status) == (1, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{\n x", "line 2, column 2"),
        ("/*", "line 1: a comment begins here"),
        ("[Regions.900]\nRegionID = x\n", "line 2"),
        ("", "there is nothing in it"),
        ("<html>", "web page"),
    ],
)
async def test_text_that_is_no_map_is_a_mistake_too(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    ran = await run_derp("map", "lint", path)
    assert (ran.status, ran.err) == (1, "")
    assert ran.out.startswith("error: ")
    assert says in ran.out
    shown = await run_derp("map", "show", path)
    assert (shown.status, shown.out) == (2, "")
    assert says in shown.err


async def test_what_cannot_be_read_is_a_wrong_question(tmp_path: Path) -> None:
    for verb in ("lint", "show"):
        ran = await run_derp("map", verb, str(tmp_path / "nowhere"))
        assert (ran.status, ran.out) == (2, "")
        assert "cannot be read: No such file" in ran.err


async def test_an_empty_map_has_a_mistake_and_can_be_shown() -> None:
    linted = await run_derp("map", "lint", "-", stdin=b"{}")
    shown = await run_derp("map", "show", "-", stdin=b"{}")
    assert (linted.status, linted.out.startswith("error: Regions: there are none")) == (1, True)
    assert (shown.status, shown.out) == (0, "no regions\n")


async def test_where_no_relay_is_there_is_no_map() -> None:
    ran = await run_derp("map", "snippet", f"http://{HOST}:1")
    assert (ran.status, ran.out) == (1, "")
    assert "nothing listens on that port" in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_a_map_at_a_glance(tmp_path: Path) -> None:
    one = region(901, code="fra") | {"NoMeasureNoHome": True}
    one["Nodes"][0] |= {"STUNPort": -1, "IPv4": "192.0.2.1", "CertName": f"sha256-raw:{'ab' * 32}"}
    two = region(902)
    two["Nodes"][0] |= {"DERPPort": 8443, "InsecureForTests": True}
    document = {"Regions": {"901": one, "902": two}, "HomeParams": {"RegionScore": {"902": 1.5}}}
    path = written(tmp_path, json.dumps(document))
    ran = await run_derp("map", "show", path)
    assert ran.out.splitlines() == [
        "region 901 fra (Region 901), never home",
        "  901a       derp901.example.com, https 443, no STUN, IPv4=192.0.2.1, pin abababababab...",
        "region 902 r902 (Region 902), score 1.5",
        "  902a       derp902.example.com, https 8443, STUN 3478, addresses by DNS, INSECURE: TLS is not verified",
    ]
    as_json = await run_derp("map", "show", "--json", path)
    assert DERPMap.parse(as_json.out) == DERPMap.parse(document)


async def test_a_snippet_of_a_running_relay_is_a_good_map(tmp_path: Path) -> None:
    async with open_relay_here() as server:
        url = f"https://{HOST}:{port_of(server)}"
        options = ["--region-id=950", "--code=fra", "--name=Frankfurt", f"--stun-port={port_of(server, 'stun')}"]
        ran = await run_derp("map", "snippet", url, *options)
        path = written(tmp_path, ran.out)
        linted = await run_derp("map", "lint", "--json", path)
        checked = await run_derp("netcheck", "--json", path)
    assert ran.status == 0
    assert "# its certificate is pinned" in ran.err
    assert linted.status == 0
    # Loopback, as everything in a test.
    assert "from this machine only" in json.loads(linted.out)["reason"]
    assert json.loads(checked.out)["preferred"] == 950


async def test_weights_become_scores_that_stock_clients_obey(tmp_path: Path) -> None:
    path = written(tmp_path, map_text(901, 902, 903))
    ran = await run_derp("map", "steer", path, "--weight", "901=0.5", "--prefer", "902", "--drain", "903")
    assert (ran.status, ran.err) == (0, "")
    steered = DERPMap.parse(ran.out)
    assert steered.home_params is not None
    assert steered.home_params.region_score == {901: 2.0, 902: 0.5}
    assert steered.regions[903].no_measure_no_home
    for wrong, reason in (("904=2", "has no region 904"), ("901=0", "wants REGION=N with N from 0.001 to 1000")):
        ran = await run_derp("map", "steer", path, "--weight", wrong)
        assert (ran.status, ran.out) == (2, "")
        assert reason in ran.err


async def test_a_region_at_its_limit_looks_farther_and_what_was_found_is_kept(tmp_path: Path) -> None:
    async with open_relay_here(tls=False, max_connections=1) as full, open_relay_here(tls=False) as empty:
        derp_map = map_of(node_of(full, 901), node_of(empty, 902))
        path, state = written(tmp_path, json.dumps(derp_map.to_json())), tmp_path / "state"
        command = ("map", "steer", path, "--weight", "901=0.5", "--load", "901", "--load", "902", "--state", str(state))

        async def run() -> Ran:
            with trio.fail_after(60):
                while full.lobby.connection_count:  # noqa: ASYNC110  # of the run before, and there is room for one
                    await trio.sleep(0.01)
            return await run_derp(*command)

        first = await run()
        assert first.status == 0
        assert DERPMap.parse(first.out).home_params == DERPHomeParams({901: 2.0})
        assert "# Region 901 looks as far as the map says: 100% of its limit (connections)" in first.err
        kept = json.loads(state.read_text())
        for region in kept["regions"].values():
            region["first_at"] -= 100
        state.write_text(json.dumps(kept))
        second = await run()
        assert DERPMap.parse(second.out).home_params == DERPHomeParams({901: 2.4})
        third = await run()
        assert third.out == second.out, "not sooner than in three minutes"
    away = await run_derp(*command)
    assert away.out == second.out, "who does not answer keeps its score"
    assert "so its score stays: node 901a: " in away.err


async def test_load_without_a_state_and_a_state_that_is_none_are_refused(tmp_path: Path) -> None:
    path, state = written(tmp_path, map_text(901, 902)), tmp_path / "state"
    state.write_text('{"regions": []}')
    without = await run_derp("map", "steer", path, "--load", "901")
    wrong = await run_derp("map", "steer", path, "--load", "901", "--state", str(state))
    unknown = await run_derp("map", "steer", path, "--load", "7", "--state", str(tmp_path / "new"))
    assert [each.status for each in (without, wrong, unknown)] == [2, 2, 2]
    assert "--load and --state go together" in without.err
    assert "remove it to begin anew" in wrong.err
    assert "has no region 7" in unknown.err
    assert state.read_text() == '{"regions": []}'
