"""The genuine netcheck library and ours, asked about the same map; Go program: tests/interop/go/cmd/netcheckpeer."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from derp.client.dial import DialOptions
from derp.client.netcheck import Netcheck, NetcheckOptions
from derp.map import DERPMap
from derp.netcheck.plan import stun_target
from derp.netcheck.report import Report
from tests.support.gobuild import NETCHECKPEER
from tests.support.peers import PATIENCE_SECONDS, require

# Every verdict of a report but latencies and ports, which are compared by what has them.
FLAGS = ("udp", "ipv4", "ipv6", "ipv4_can_send", "ipv6_can_send", "os_has_ipv6", "mapping_varies", "preferred")
TABLES = ("region_seconds", "region_ipv4_seconds", "region_ipv6_seconds")

Heard = Mapping[int, float]
"""How many seconds before a netcheck the relay connection to a region last gave a frame."""


async def genuine(question: str, **asked: object) -> Any:
    """What the library answers."""
    binary = require(NETCHECKPEER)
    environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    with trio.fail_after(PATIENCE_SECONDS):
        done = await trio.run_process(
            [str(binary), question],
            stdin=json.dumps(asked).encode(),
            capture_stdout=True,
            capture_stderr=True,
            env=environment,
        )
    return json.loads(done.stdout)


async def compare(*maps: DERPMap, heard: Sequence[Heard] = ()) -> list[Report]:
    """One netcheck per map, by one client of each kind: all verdicts agree; ours are returned.

    A region with nodes of both address families may be measured by either or both, since an answer of one makes the
    other superfluous: there the tables by family are left to chance.
    """
    frames = [*heard, *({} for _ in maps[len(heard) :])]
    theirs: list[dict[str, Any]] = []
    mine: list[Report] = []
    require(NETCHECKPEER)  # to build it takes a minute, in which our own netcheck would hear nothing

    async def ask_genuine() -> None:
        steps = [{"map": one.to_json(), "heard": ago} for one, ago in zip(maps, frames, strict=True)]
        theirs.extend(await genuine("report", steps=steps))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_genuine)
        # All regions, as the library does when it is verbose.
        netcheck = Netcheck(NetcheckOptions(enough_regions=None, dial=DialOptions(environment=None)))
        for derp_map, ago in zip(maps, frames, strict=True):
            began = trio.current_time()
            last_heard = {region_id: began - seconds for region_id, seconds in ago.items()}
            mine.append(await netcheck.report(derp_map, last_heard=last_heard.get))
    for step, (one, other) in enumerate(zip(map(in_words, mine), map(as_said, theirs), strict=True)):
        for region_id in regions_of_both_families(maps[step]):
            for table in TABLES[1:]:
                one[table] = [name for name in one[table] if name != str(region_id)]
                other[table] = [name for name in other[table] if name != str(region_id)]
        if len(one[TABLES[1]]) < 2 and {one["mapping_varies"], other["mapping_varies"]} == {None, False}:
            # One relay alone tells only when asked a second time, which its answer to the first makes superfluous.
            one["mapping_varies"] = other["mapping_varies"] = None
        different = {name: (one[name], other[name]) for name in one if one[name] != other[name]}
        assert not different, f"netcheck {step}, (ours, theirs): {different}, asked {maps[step].to_json()}"
    return mine


def regions_of_both_families(derp_map: DERPMap) -> list[int]:
    return [
        region_id
        for region_id, region in derp_map.regions.items()
        if all(any(stun_target(node, family) for node in region.nodes) for family in (4, 6))
    ]


def in_words(report: Report) -> dict[str, Any]:
    """Our verdicts, without what differs between two runs."""
    assert all(seconds > 0 for table in TABLES for seconds in getattr(report, table).values())
    return (
        {name: getattr(report, name) for name in FLAGS}
        | {table: sorted(map(str, getattr(report, table))) for table in TABLES}
        | {name: getattr(report, name).rpartition(":")[0] for name in ("global_ipv4", "global_ipv6")}
    )


def as_said(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The library's verdicts in the same shape."""
    said = (
        {name: theirs[name] for name in FLAGS}
        | {table: sorted(theirs[table]) for table in TABLES}
        | {name: theirs[name].rpartition(":")[0] for name in ("global_ipv4", "global_ipv6")}
    )
    for family in ("ipv4", "ipv6"):
        # The library notes that it could send after it did; an answer from loopback may end the report before that.
        said[f"{family}_can_send"] |= bool(theirs[f"region_{family}_seconds"])
    return said
