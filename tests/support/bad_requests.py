"""Requests of every RPC of the agent's service as no agent in its right mind sends them: empty, too large, hostile.

Which RPCs and fields there are is read from the service's descriptors, so a new one is tried without a line here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.support.seeds import make_id, peer_id

DEEP = 4  # no request has more levels

# What stands in each scalar field.
Scalars = Callable[[Any], Any]  # a FieldDescriptor, of either implementation


def fill_in(message: Message, scalar: Scalars, count: int = 1, depth: int = 0) -> Message:
    """Set every field; repeated ones to so many."""
    for each in message.DESCRIPTOR.fields:
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            key, value = each.message_type.fields_by_name["key"], each.message_type.fields_by_name["value"]
            if value.message_type is None:
                getattr(message, each.name)[scalar(key)] = scalar(value)
            elif depth < DEEP:
                fill_in(getattr(message, each.name)[scalar(key)], scalar, count, depth + 1)
        elif each.message_type is None and each.is_repeated:
            getattr(message, each.name).extend([scalar(each)] * count)
        elif each.message_type is None:
            setattr(message, each.name, scalar(each))
        elif depth < DEEP and each.is_repeated:
            for _ in range(count):
                fill_in(getattr(message, each.name).add(), scalar, 1, depth + 1)
        elif depth < DEEP:
            fill_in(getattr(message, each.name), scalar, count, depth + 1)
            getattr(message, each.name).SetInParent()
    return message


def with_text(text: str, raw: bytes, whole: int, real: float) -> Scalars:
    def scalar(each: FieldDescriptor) -> Any:
        by_type: dict[int, Any] = {
            FieldDescriptor.CPPTYPE_STRING: raw if each.type == FieldDescriptor.TYPE_BYTES else text,
            FieldDescriptor.CPPTYPE_BOOL: True,
            FieldDescriptor.CPPTYPE_ENUM: whole % 2**31 if whole >= 0 else -1,
            FieldDescriptor.CPPTYPE_DOUBLE: real,
            FieldDescriptor.CPPTYPE_FLOAT: real,
            FieldDescriptor.CPPTYPE_INT32: max(-(2**31), min(whole, 2**31 - 1)),
            FieldDescriptor.CPPTYPE_UINT32: whole % 2**32,
            FieldDescriptor.CPPTYPE_INT64: whole,
            FieldDescriptor.CPPTYPE_UINT64: whole % 2**64,
        }
        return by_type[each.cpp_type]

    return scalar


MOST, LEAST = 2**63 - 1, -(2**63)
NASTY = "'; drop table agents; --\x00\x1b[2J\r\n\u202e\U0010ffff<script>{{7*7}}%s%n../../etc/passwd"
RIGHT = with_text("v1.2.3", make_id("editor of main").bytes, 1, 0.5)
FILLED: Mapping[str, tuple[Scalars, int]] = {
    "oversized": (with_text("x" * 100_000, b"x" * 100_000, 1, 0.5), 3),
    "very many": (with_text("a", bytes(16), 1, 0.5), 5_000),
    "hostile": (with_text(NASTY, b"\x00\xff'\"" * 4, 1, float("nan")), 2),
    "greatest": (with_text("\x00", make_id("editor of web").bytes, MOST, float("inf")), 1),
    "least": (with_text("v1.0.0", make_id("editor of main").bytes, LEAST, float("-inf")), 1),
    # Of another: its ids, its session, its app.
    "anothers": (with_text("web", peer_id("web"), 2, 1.0), 1),
    # The same thing twice in one request, each time with all there is.
    "contradictory": (with_text("v1.2.3", make_id("editor of main").bytes, 3, -1.0), 2),
}


def half_filled(rpc: type[Message]) -> Iterator[Message]:
    """Each field alone, and each that is a message as an empty one."""
    whole = fill_in(rpc(), with_text("v1.2.3", bytes(16), 1, 0.5))
    for each in rpc.DESCRIPTOR.fields:
        alone = rpc()
        alone.MergeFrom(whole)
        for other in rpc.DESCRIPTOR.fields:
            if other is not each:
                alone.ClearField(other.name)
        yield alone
        if each.message_type is not None and not each.is_repeated:
            alone = rpc()
            getattr(alone, each.name).SetInParent()
            yield alone
        elif each.message_type is not None and not each.message_type.GetOptions().map_entry:
            alone = rpc()
            getattr(alone, each.name).add()
            yield alone


def leaves(message: Any, depth: int = 0) -> set[str]:
    """All scalar fields of a message and of those in it."""
    found: set[str] = set()
    for each in message.fields:
        if each.message_type is None:
            found.add(each.full_name)
        elif depth < DEEP:
            found |= leaves(each.message_type, depth + 1)
    return found


def wrong_in_one_field(rpc: type[Message]) -> Iterator[Message]:
    """Right but for one field: where several are wrong, the first that is looked at hides the others."""
    for name in sorted(leaves(rpc.DESCRIPTOR)):
        for wrong in ("oversized", "hostile", "greatest", "least"):
            yield fill_in(rpc(), only_in(name, FILLED[wrong][0]))


def only_in(name: str, wrong: Scalars) -> Scalars:
    return lambda each: wrong(each) if each.full_name == name else RIGHT(each)


def requests_of(rpc: type[Message]) -> Iterator[tuple[str, Message]]:
    yield "empty", rpc()
    for message in half_filled(rpc):
        yield "missing", message
    for message in wrong_in_one_field(rpc):
        yield "wrong in one field", message
    for name, (scalar, count) in FILLED.items():
        yield name, fill_in(rpc(), scalar, count)
