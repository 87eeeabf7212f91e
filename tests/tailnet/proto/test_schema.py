"""The compiled schema against the table of wire facts, fact by fact, both ways.

tests/vectors/rpc_schema.txt is what was learnt of the wire; the .proto files are our own text.  A number, a name, a
type or a label that differs in either shows up here as one line.
"""

from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from tailnet.proto.generated import agent_pb2, tailnet_pb2

FACTS = Path(__file__).parents[2] / "vectors" / "rpc_schema.txt"
# What we say beyond it: with numbers that no genuine message is near.
OURS = {"coder.tailnet.v2.DERPMap.Region.Node 1013 quic_port int32"}
SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("double", "float", "int64", "uint64", "int32", "bool", "string", "bytes", "uint32")
}


def facts_in_table(text: str) -> set[str]:
    """Each line of the table as one self-contained fact: `package.Message number name type marks`."""
    facts: set[str] = set()
    package = scope = ""
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0] == "file":
            package = words[1]
        elif words[0] in ("message", "enum"):
            scope = f"{package}.{words[1]}"
            facts.add(f"{words[0]} {scope}")
        elif words[0] == "service":
            scope = f"{package}.{words[1]}"
        elif words[0] == "reserved":
            facts.update(f"{scope} reserved {number}" for number in words[1:])
        elif words[0] != "import":
            # The minor is no part of a descriptor; proto/services.py carries it and is compared in test_services.py.
            facts.add(" ".join([scope, *(word for word in words if not word.startswith("@"))]))
    return facts


def type_fact(field: FieldDescriptor, package: str) -> str:
    target: Descriptor | EnumDescriptor | None = field.message_type or field.enum_type
    if target is None:
        return SCALARS[field.type]
    return target.full_name.removeprefix(f"{package}.")


def field_fact(message: Descriptor, field: FieldDescriptor) -> str:
    package = message.file.package
    words = [message.full_name, str(field.number), field.name]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        words += ["map", type_fact(key, package), type_fact(value, package)]
    else:
        oneof = field.containing_oneof
        # proto3 spells `optional` as a oneof of one, whose name begins with an underscore.
        optional = oneof is not None and oneof.name.startswith("_")
        words += ["repeated"] if field.is_repeated else ["optional"] if optional else []
        words.append(type_fact(field, package))
        if oneof is not None and not optional:
            words.append(f"oneof={oneof.name}")
    if field.GetOptions().deprecated:
        words.append("deprecated")
    return " ".join(words)


def enum_facts(enum: EnumDescriptor) -> set[str]:
    return {f"enum {enum.full_name}", *(f"{enum.full_name} {value.number} {value.name}" for value in enum.values)}


def message_facts(message: Descriptor) -> set[str]:
    facts = {f"message {message.full_name}", *(field_fact(message, field) for field in message.fields)}
    proto = DescriptorProto()
    message.CopyToProto(proto)
    for span in proto.reserved_range:
        facts.update(f"{message.full_name} reserved {number}" for number in range(span.start, span.end))
    for enum in message.enum_types:
        facts |= enum_facts(enum)
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            facts |= message_facts(nested)
    return facts


def facts_in_descriptors(file: FileDescriptor) -> set[str]:
    facts: set[str] = set()
    for message in file.message_types_by_name.values():
        facts |= message_facts(message)
    for enum in file.enum_types_by_name.values():
        facts |= enum_facts(enum)
    shapes = {(False, False): "unary", (False, True): "serverstream", (True, True): "bidi"}
    for service in file.services_by_name.values():
        for method in service.methods:
            request, response = (
                kind.full_name.removeprefix(f"{file.package}.") for kind in (method.input_type, method.output_type)
            )
            shape = shapes[method.client_streaming, method.server_streaming]
            facts.add(f"{service.full_name} {method.name} {request} {response} {shape}")
    return facts


def compiled_facts() -> set[str]:
    return facts_in_descriptors(tailnet_pb2.DESCRIPTOR) | facts_in_descriptors(agent_pb2.DESCRIPTOR)


def test_every_fact_is_compiled_and_nothing_else() -> None:
    known, compiled = facts_in_table(FACTS.read_text()), compiled_facts()
    assert sorted(known - compiled) == []
    assert sorted(compiled - known) == sorted(OURS)


def test_the_table_is_whole() -> None:
    # Guards the parser above: a table that parses to nothing would agree with anything.
    known = facts_in_table(FACTS.read_text())
    assert len(known) > 560
    assert "coder.tailnet.v2.Node 7 derp_forced_websocket map int32 string" in known
    assert "coder.agent.v2.BoundaryLog 3 http_request BoundaryLog.HttpRequest oneof=resource" in known


def test_a_changed_number_would_show() -> None:
    text = FACTS.read_text().replace(" 5 preferred_derp int32", " 6 preferred_derp int32")
    assert facts_in_table(text) - compiled_facts() == {"coder.tailnet.v2.Node 6 preferred_derp int32"}


def test_both_files_are_proto3() -> None:
    # proto2 would change presence and defaults under the same numbers.
    for file in (tailnet_pb2.DESCRIPTOR, agent_pb2.DESCRIPTOR):
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        assert proto.syntax == "proto3"
