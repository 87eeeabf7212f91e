"""What a node must look like before anybody is told of it."""

from dataclasses import fields, replace
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.nodes import (
    Limits,
    Node,
    Refusal,
    complain_about_keys,
    complain_about_size,
    parse_single_address,
    same_identity,
)
from tests.tailnet.coordinator.playbook import make_node


@pytest.mark.parametrize(
    "key",
    [b"", b"np", b"np" + bytes(31), b"np" + bytes(33), bytes(32), bytes(34), b"pn" + bytes(32)],
)
def test_keys_that_receivers_refuse(key: bytes) -> None:
    complaint = complain_about_keys(make_node("n", key=key))
    assert complaint is not None
    assert complaint.reason is Refusal.NODE_KEY
    assert f"got {len(key)} bytes" in complaint.text


@pytest.mark.parametrize(
    "disco",
    [
        "",
        "discokey:",
        "0" * 64,
        "nodekey:" + "0" * 65,
        "discokey:" + "0" * 63,
        "discokey:" + "0" * 65,
        "discokey:" + "g" * 64,
        "discokey:" + "\u0661" * 64,
    ],
)
def test_disco_keys_that_receivers_refuse(disco: str) -> None:
    complaint = complain_about_keys(make_node("n", disco=disco))
    assert complaint is not None
    assert complaint.reason is Refusal.NODE_KEY


def test_good_keys_pass() -> None:
    assert complain_about_keys(make_node("n", key=b"np" + b"\xff" * 32, disco="discokey:" + "aF" * 32)) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"raw": bytes(101)}, "node has 101 bytes, limit 100"),
        ({"addresses": ("::/128",) * 3}, "node has 3 addresses, limit 2"),
        ({"allowed_ips": ("::/128",) * 3}, "node has 3 allowed_ips, limit 2"),
    ],
)
def test_sizes_are_bounded(change: dict[str, Any], text: str) -> None:
    limits = Limits(node_bytes=100, addresses=2)
    complaint = complain_about_size(make_node("n", **change), limits)
    assert complaint == (Refusal.NODE_SIZE, text)


def test_sizes_at_the_limit_pass() -> None:
    limits = Limits(node_bytes=100, addresses=2)
    full = make_node("n", ["::/128"] * 2, raw=bytes(100))
    assert complain_about_size(full, limits) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/128",
        "fd7a:115c:a1e0::1",
        "fd7a:115c:a1e0::1/",
        "fd7a:115c:a1e0::1/64",
        "fd7a:115c:a1e0::1/0128",
        "fd7a:115c:a1e0::1/+128",
        "fd7a:115c:a1e0::1/128/128",
        "fd7a:115c:a1e0::1%eth0/128",
        " fd7a:115c:a1e0::1/128",
        "100.64.0.1/32",
        "100.64.0.1/128",
        "fd7a:::1/128",
    ],
)
def test_what_is_not_a_single_address(text: str) -> None:
    assert parse_single_address(text) is None


@given(st.binary(min_size=16, max_size=16))
def test_addresses_of_any_bytes_are_those_of_the_library(raw: bytes) -> None:
    address = IPv6Address(raw)
    for text in (str(address), address.exploded, str(address).upper()):
        assert parse_single_address(f"{text}/128") == address


@given(st.text(st.sampled_from("0fA:g "), max_size=45))
def test_whatever_is_read_the_library_reads_too(text: str) -> None:
    try:
        wanted = IPv6Address(text)
    except ValueError:
        wanted = None
    assert parse_single_address(f"{text}/128") == wanted


@pytest.mark.parametrize("text", ["fd7a:115c:a1e0::1/128", "FD7A:115C:A1E0:0:0:0:0:1/128"])
def test_a_single_address_in_any_spelling(text: str) -> None:
    assert parse_single_address(text) == IPv6Address("fd7a:115c:a1e0::1")


@pytest.mark.parametrize("field", [field.name for field in fields(Node)])
def test_what_is_judged_is_the_identity_and_nothing_else(field: str) -> None:
    """A node that differs in a judged field must be judged again; one that differs elsewhere need not."""
    changed: dict[str, Any] = {
        "raw": b"other",
        "key": b"np" + bytes(31) + b"1",
        "disco": "discokey:" + "1" * 64,
        "preferred_derp": 2,
        "addresses": ("::2/128",),
        "allowed_ips": ("::2/128",),
    }
    known = make_node("n", ["::1/128"])
    judged = field in ("key", "disco", "addresses", "allowed_ips")
    assert same_identity(replace(known, **{field: changed[field]}), known) is not judged
    assert same_identity(replace(known), known)
