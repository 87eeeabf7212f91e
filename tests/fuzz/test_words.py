"""What users type, and the line that begins a speed test: any text is understood or refused."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tailnet.agent.forwarding import parse_ports
from tailnet.agent.speedtest import MAX_SECONDS, VERSION, read_wish
from tailnet.cli.cp import parse_place, scp_word
from tailnet.cli.port_forward import parse_forward
from tailnet.errors import ConfigError, RemoteProtocolError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
WISHES = st.fixed_dictionaries({}, optional={"version": JSON | st.just(VERSION), "time": JSON, "direction": JSON})
PORTS = st.text("0123456789:-,[].x ", max_size=20) | st.text(max_size=20)


@given(st.binary(max_size=60) | st.one_of(JSON, WISHES).map(lambda said: json.dumps(said).encode()))
def test_a_wish_for_a_speed_test(line: bytes) -> None:
    try:
        wish = read_wish(line)
    except RemoteProtocolError:
        return
    assert 0 <= wish.seconds <= MAX_SECONDS


@given(PORTS)
def test_ports_that_are_forwarded(text: str) -> None:
    try:
        ports = parse_ports(text)
    except ConfigError:
        return
    assert all(0 < first <= last <= 65535 for first, last in ports.ranges)


@given(PORTS, st.sampled_from(("tcp", "udp")))
def test_a_forward(text: str, protocol: str) -> None:
    try:
        forward = parse_forward(text, protocol)
    except ConfigError:
        return
    assert forward.host
    assert 0 <= forward.port <= 65535
    assert 0 < forward.remote_port <= 65535


@given(st.text(":/.~-ab ", max_size=12) | st.text(max_size=12))
def test_a_place(text: str) -> None:
    """Whatever is local scp takes for local, and never for an option."""
    try:
        place = parse_place(text)
    except ConfigError:
        assert not text or text.startswith(":")
        return
    word = scp_word(place)
    assert not word.startswith("-")
    assert (":" in word.partition("/")[0]) is bool(place.agent)
