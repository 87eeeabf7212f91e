"""The services table against the compiled services and the table of wire facts."""

import re

import pytest

from tailnet.proto.generated import agent_pb2, tailnet_pb2
from tailnet.proto.services import AGENT, TAILNET, TAILNET_AND_AGENT, Rpc, RpcKind
from tailnet.proto.version import CURRENT
from tests.tailnet.proto.test_schema import FACTS

SHAPES = {RpcKind.UNARY: (False, False), RpcKind.SERVER_STREAM: (False, True), RpcKind.BIDI: (True, True)}
SERVICES = {
    "/coder.tailnet.v2.Tailnet/": (TAILNET, tailnet_pb2.DESCRIPTOR.services_by_name["Tailnet"]),
    "/coder.agent.v2.Agent/": (AGENT, agent_pb2.DESCRIPTOR.services_by_name["Agent"]),
}


@pytest.mark.parametrize("prefix", SERVICES)
def test_each_service_lists_exactly_its_methods(prefix: str) -> None:
    table, service = SERVICES[prefix]
    assert set(table) == {prefix + method.name for method in service.methods}


@pytest.mark.parametrize("rpc", TAILNET_AND_AGENT.values(), ids=lambda rpc: rpc.path)
def test_classes_and_shape_are_those_of_the_schema(rpc: Rpc) -> None:
    prefix, _, name = rpc.path.rpartition("/")
    method = SERVICES[prefix + "/"][1].methods_by_name[name]
    assert (method.input_type, method.output_type) == (rpc.request.DESCRIPTOR, rpc.response.DESCRIPTOR)
    assert SHAPES[rpc.kind] == (method.client_streaming, method.server_streaming)


def test_minors_are_those_of_the_table() -> None:
    listed = dict(re.findall(r"^ (\w+) \S+ \S+ (?:unary|serverstream|bidi)(?: @2\.(\d+))?$", FACTS.read_text(), re.M))
    assert {rpc.path.rpartition("/")[2]: rpc.minor for rpc in TAILNET_AND_AGENT.values()} == {
        name: int(minor or 0) for name, minor in listed.items()
    }


def test_the_announced_version_covers_every_minor_of_the_table() -> None:
    newest = max(int(minor) for minor in re.findall(r"@2\.(\d+)", FACTS.read_text()))
    assert (2, newest) == CURRENT
