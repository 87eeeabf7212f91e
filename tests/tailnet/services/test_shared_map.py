"""Replicas that serve different DERP maps say so, and in which regions."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from derp.map import DERPHomeParams, DERPMap, DERPRegion
from tailnet.replica.codec import encode_message
from tailnet.replica.messages import Tell
from tailnet.server.server import CoordinatorServer
from tailnet.services.shared_map import (
    MAX_REGIONS,
    Content,
    SharedMap,
    content_of,
    decode_content,
    describe_difference,
    encode_content,
)
from tests.support import maps
from tests.support.tailnet_driver import wait_for
from tests.tailnet.server.test_replicated import Places, linked, replicas_of


def region(number: int) -> DERPRegion:
    return DERPRegion.parse(maps.region(number))


MAP = DERPMap({1: region(1), 2: region(2)})


@pytest.fixture
def places(serve: Callable[..., Awaitable[CoordinatorServer]], filled_file: Path, tmp_path: Path) -> Places:
    return Places(serve, filled_file, tmp_path)


def difference(other: DERPMap) -> str:
    theirs = decode_content(encode_content(content_of(other)))
    assert theirs is not None
    return describe_difference(content_of(MAP), theirs)


def test_what_differs_is_named() -> None:
    assert difference(MAP) == ""
    assert difference(DERPMap({1: region(1)})) == "region 2 (r2) only here"
    assert difference(DERPMap({**MAP.regions, 3: region(3)})) == "region 3 (r3) only there"
    moved = replace(region(2), nodes=(replace(region(2).nodes[0], host_name="elsewhere"),))
    assert difference(DERPMap({1: region(1), 2: moved})) == "region 2 (r2) another there"
    assert difference(replace(MAP, home_params=DERPHomeParams({1: 2.0}))) == "other scores there"
    assert difference(DERPMap()) == "regions 1 (r1), 2 (r2) only here"
    many = DERPMap({number: replace(region(number), region_code="\x1b[1m") for number in range(11, 20)})
    assert describe_difference(content_of(DERPMap()), content_of(many)).endswith("15 (\\x1b[1m) and 4 more only there")


def test_what_does_not_matter_is_no_difference() -> None:
    two = replace(region(2), nodes=(*region(2).nodes, replace(region(2).nodes[0], name="2x")))
    turned = replace(two, nodes=two.nodes[::-1])
    assert content_of(DERPMap({2: two})) == content_of(DERPMap({2: turned}))
    embedded = replace(region(1), embedded_relay=True)
    behind_another_name = replace(embedded, nodes=(replace(embedded.nodes[0], host_name="another"),))
    assert content_of(DERPMap({1: embedded})) == content_of(DERPMap({1: behind_another_name}))


def test_what_is_told_is_bounded_and_read_with_care() -> None:
    content = content_of(DERPMap({number: region(number) for number in range(1, 1500)}))
    told = decode_content(encode_content(content))
    assert told is not None
    assert len(told.regions) == MAX_REGIONS
    # One frame has room for it whatever regions are called.
    named = {number: replace(region(1), region_code=20 * "\U0001f30d") for number in range(2**62, 2**62 + MAX_REGIONS)}
    encode_message(Tell(SharedMap.topic, encode_content(content_of(DERPMap(named)))))
    for wrong in (b"", b"\xc1", *map(msgpack.packb, (7, [], [[], 5], [[[1, "x", 10**15]], b""], [[7], b""]))):
        assert decode_content(wrong) is None
    assert decode_content(msgpack.packb([[[1, "x", b"d", "later"]], b"r", "later"])) == Content({1: ("x", b"d")}, b"r")


async def test_two_replicas_with_different_maps(places: Places, tmp_path: Path) -> None:
    paths = [tmp_path / f"map{number}.json" for number in range(2)]
    for path, derp_map in zip(paths, (MAP, DERPMap({1: region(1)})), strict=True):
        path.write_text(json.dumps(derp_map.to_json()))
    servers = [await places.start(number, derp_map=(path,)) for number, path in enumerate(paths)]
    await linked(*servers)
    one, other = map(replicas_of, servers)

    def digest_heard() -> bytes:
        status = one.cluster.pair(other.id).status
        return status.map_digest if status is not None else b""

    await wait_for(lambda: one.map_difference(other.id) == "region 2 (r2) only here")
    await wait_for(lambda: other.map_difference(one.id) == "region 2 (r2) only there")
    await wait_for(lambda: digest_heard() not in (b"", one.cluster.map_digest))
    paths[1].write_text(json.dumps(MAP.to_json()))
    await wait_for(lambda: one.map_difference(other.id) == "")
    await wait_for(lambda: digest_heard() == one.cluster.map_digest)
    servers[0].maps.steer(factors={1: 3.0})
    assert servers[0].maps.current.map.home_params is not None
    assert content_of(servers[0].maps.current.unsteered) == content_of(servers[1].maps.current.unsteered)
