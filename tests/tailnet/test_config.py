"""Settings from every source, each mistake as one line that names place, key and remedy."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from derp.keys import NodePrivate
from tailnet.config import (
    BY_NAME,
    MAX_BANNER_CHARS,
    MAX_BANNERS,
    SETTINGS,
    Banner,
    CoordinatorConfig,
    changed_flags,
    load_config,
)
from tailnet.errors import ConfigError

# One good value of each setting as text, and what it becomes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "listen": ("127.0.0.1:1,[::1]:2", (("127.0.0.1", 1), ("::1", 2))),
    "stun_listen": ("127.0.0.1:3479", (("127.0.0.1", 3479),)),
    "store": ("sqlite:///x.db", "sqlite:///x.db"),
    "dev": ("true", True),
    "access_url": ("https://tailnet.example.com", "https://tailnet.example.com"),
    "tls_cert": ("a.crt", Path("a.crt")),
    "tls_key": ("a.key", Path("a.key")),
    "derp": ("false", False),
    "derp_region_id": ("7", 7),
    "derp_region_code": ("fra", "fra"),
    "derp_region_name": ("Frankfurt am Main", "Frankfurt am Main"),
    "stun_servers": ("stun.example.com:19302", (("stun.example.com", 19302),)),
    "derp_map": ("a.json,b.json", (Path("a.json"), Path("b.json"))),
    "derp_map_url": ("https://maps.example.com/map", ("https://maps.example.com/map",)),
    "derp_map_poll": ("1m", 60.0),
    "region_scores": ("1=1.5,999=0.5", ((1, 1.5), (999, 0.5))),
    "avoid_regions": ("1,2", (1, 2)),
    "browser_only": ("true", True),
    "disable_direct_connections": ("true", True),
    "derp_force_websockets": ("true", True),
    "hostname_suffix": ("example.com", "example.com"),
    "agent_ping": ("5s", 5.0),
    "agent_inactive": ("20s", 20.0),
    "stats_interval": ("1m", 60.0),
    "announcement_banners": ("Down on Sunday, 8 to 9.", (Banner("Down on Sunday, 8 to 9."),)),
    "accept_connection_limit": ("10", 10.0),
    "accept_connection_burst": ("20", 20),
    "max_connections": ("30", 30),
    "queue_depth": ("40", 40),
    "queue_bytes": ("200000", 200_000),
    "drain": ("3s", 3.0),
    "debug_allow": ("10.0.0.0/8", None),
    "trusted_proxies": ("10.0.0.1", None),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}


def load(
    flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, file: Path | None = None
) -> CoordinatorConfig:
    return load_config(flags, environ or {}, None if file is None else str(file), open_files=1 << 20)


def refused(
    flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, file: Path | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_setting_has_an_example() -> None:
    assert set(EXAMPLES) == set(BY_NAME)


def test_every_attribute_can_be_set() -> None:
    attributes = {setting.attribute or setting.name for setting in SETTINGS} - {"tls_cert", "tls_key"}
    assert attributes | {"tls", "notices"} == {field.name for field in fields(CoordinatorConfig)}


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"tls_cert", "tls_key"}))
def test_flag_environment_and_file_mean_the_same(name: str, tmp_path: Path) -> None:
    text, value = EXAMPLES[name]
    setting = BY_NAME[name]
    attribute = setting.attribute or name
    from_flag = getattr(load({name: text}), attribute)
    assert getattr(load(environ={setting.environment: text}), attribute) == from_flag
    path = tmp_path / "tailnet.toml"
    bare = text if text in ("true", "false") or name in ("derp_region_id", "queue_depth") else f'"{text}"'
    path.write_text(f"{name} = {bare}\n")
    assert getattr(load(file=path), attribute) == from_flag
    assert from_flag != getattr(load(), attribute)
    if value is not None:
        assert from_flag == value


def test_lists_and_numbers_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text('listen = ["127.0.0.1:1", ":2"]\navoid_regions = [1, 2]\nmax_connections = 5\n')
    config = load(file=path)
    assert config.listen == (("127.0.0.1", 1), ("", 2))
    assert (config.avoid_regions, config.max_connections) == ((1, 2), 5)


def test_the_stronger_source_wins(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text("queue_depth = 1\nqueue_bytes = 200000\nderp_region_id = 3\n")
    config = load({"queue_depth": "3"}, {"TAILNET_QUEUE_DEPTH": "2", "TAILNET_QUEUE_BYTES": "300000"}, path)
    assert (config.queue_depth, config.queue_bytes, config.derp_region_id) == (3, 300_000, 3)


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text("queue_depth = 7\n")
    assert load(environ={"TAILNET_CONFIG": str(path)}).queue_depth == 7


def test_what_others_put_into_the_environment() -> None:
    environ = {
        "TAILNET_PORT": "tcp://10.0.0.1:80",
        "TAILNET_SERVICE_HOST": "10.0.0.1",
        "TAILNET_LISTEN": "",
        "PATH": "x",
    }
    assert load(environ=environ).listen == CoordinatorConfig().listen


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"listen": "3000"}, "flags: --listen: wants an address with a port"),
        ({"listen": ""}, "flags: --listen: wants at least one address"),
        ({"stun_listen": "on"}, "flags: --stun-listen: wants an address"),
        ({"region_scores": "1:2"}, "flags: --region-scores: wants REGION=FACTOR"),
        ({"region_scores": "1=0"}, "flags: --region-scores: wants REGION=FACTOR with a factor above 0"),
        ({"region_scores": "1=x"}, "flags: --region-scores: wants REGION=FACTOR"),
        ({"region_scores": "0=1.5"}, "flags: --region-scores: wants a whole number from 1"),
        ({"derp_region_id": "2147483648"}, "flags: --derp-region-id: wants a whole number"),
        ({"derp_region_code": ""}, "flags: --derp-region-code: wants 1 to 64"),
        ({"hostname_suffix": "a b"}, "flags: --hostname-suffix: wants a host name"),
        ({"agent_ping": "5"}, "flags: --agent-ping: wants a duration with its unit"),
        ({"agent_ping": "40s", "agent_inactive": "40s"}, "flags: --agent-inactive: must be longer than --agent-ping"),
        ({"tls_cert": "a.crt"}, "flags: --tls-cert: a certificate needs its key"),
        ({"tls_key": "a.key"}, "flags: --tls-key: a certificate needs its key"),
        ({"announcement_banners": "[1, "}, "flags: --announcement-banners: begins as a JSON list and is none"),
        ({"announcement_banners": "[1]"}, "flags: --announcement-banners: wants banners as tables of message, back"),
        ({"announcement_banners": '[{"mesage": "x"}]'}, "flags: --announcement-banners: wants banners as tables"),
        ({"announcement_banners": '[{"message": "x", "colour": "red"}]'}, "flags: --announcement-banners: wants ban"),
        ({"announcement_banners": '[{"message": ""}]'}, "flags: --announcement-banners: wants a message of 1 to"),
        ({"announcement_banners": '[{"message": 1}]'}, "flags: --announcement-banners: wants a message of 1 to"),
        ({"announcement_banners": "x" * (MAX_BANNER_CHARS + 1)}, "flags: --announcement-banners: wants a message of"),
        ({"announcement_banners": "\x1b[2J"}, "flags: --announcement-banners: wants a message that can be printed"),
        ({"announcement_banners": " \n"}, "flags: --announcement-banners: wants a message that can be printed"),
        (
            {"announcement_banners": '[{"message": "x", "background_color": "red"}]'},
            'flags: --announcement-banners: wants a background_color such as "#004852"',
        ),
        (
            {"announcement_banners": '[{"message": "x", "background_color": "#0048529"}]'},
            'flags: --announcement-banners: wants a background_color such as "#004852"',
        ),
        (
            {"announcement_banners": '[{"message": "x", "enabled": "perhaps"}]'},
            "flags: --announcement-banners: wants true or false",
        ),
        (
            {"announcement_banners": json.dumps([{"message": "x"}] * (MAX_BANNERS + 1))},
            "flags: --announcement-banners: wants a message, or a list of at most 10",
        ),
        ({"access_url": "tailnet.example.com"}, "flags: --access-url: wants a URL"),
        ({"max_connections": "2000000"}, "flags: --max-connections: 2,000,000 are not possible"),
    ],
)
def test_one_mistake_one_line(flags: dict[str, str], line: str) -> None:
    assert refused(flags).startswith(line)


def test_banners_as_tables_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text(
        '[[announcement_banners]]\nmessage = """one\ntwo"""\nbackground_color = "#0048aF"\n'
        '[[announcement_banners]]\nmessage = "draft"\nenabled = false\n'
    )
    wanted = (Banner("one\ntwo", "#0048aF"), Banner("draft", enabled=False))
    assert load(file=path).announcement_banners == wanted
    items = [{"message": "one\ntwo", "background_color": "#0048aF"}, {"message": "draft", "enabled": False}]
    assert load({"announcement_banners": f" {json.dumps(items)}"}).announcement_banners == wanted
    # The stronger source takes all of them away.
    assert load({"announcement_banners": ""}, file=path).announcement_banners == ()


def test_what_changed_between_two_readings() -> None:
    before = load({"queue_depth": "1", "tls_cert": "a", "tls_key": "b"})
    after = load({"queue_depth": "2", "tls_cert": "a", "tls_key": "c", "derp": "false", "listen": "127.0.0.1:3000"})
    assert sorted(changed_flags(before, after)) == ["--derp", "--queue-depth", "--tls-cert"]
    assert changed_flags(after, after) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("queue_dept = 1", "'queue_dept': there is no such setting: did you mean queue_depth?"),
        ("queue_depth = 'x'", "queue_depth: wants a whole number"),
        ("queue_depth = ", "is not TOML"),
        ("[relay]\nx = 1", "'relay': there is no such setting"),
        ("\0" * (1 << 20) + "\0", "holds no settings"),
    ],
)
def test_mistakes_in_the_file(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text(text)
    message = refused(file=path)
    assert message.startswith(f"{path}: ")
    assert line in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot read the settings: No such file" in refused(file=tmp_path / "no.toml")


def test_mistakes_in_the_environment() -> None:
    assert refused(environ={"TAILNET_LISTEM": "x"}) == (
        "environment: TAILNET_LISTEM: there is no such setting: did you mean TAILNET_LISTEN?"
    )
    assert refused(environ={"TAILNET_DEV": "perhaps"}).startswith("environment: TAILNET_DEV: wants true or false")


def test_stun_is_beside_the_listeners_unless_told() -> None:
    assert load({"listen": "127.0.0.1:1,127.0.0.1:2,[::1]:1"}).stun_addresses == (("127.0.0.1", 3478), ("::1", 3478))
    assert load({"stun_listen": "off"}).stun_addresses == ()
    assert load({"stun_listen": "127.0.0.1:0"}).stun_addresses == (("127.0.0.1", 0),)


def test_a_store_for_this_run_only() -> None:
    assert load({"dev": "true"}).store == ""
    assert load({"dev": "true", "store": "sqlite:///tailnet.db"}).store == "sqlite:///tailnet.db"
    assert load().store == "sqlite:///tailnet.db"


def test_silence_of_agents() -> None:
    assert load().inactive_seconds == 30
    assert load({"agent_ping": "1s"}).inactive_seconds == 2
    assert load({"agent_inactive": "1m"}).inactive_seconds == 60


def test_the_embedded_relay_gets_our_settings() -> None:
    config = load(
        {"listen": "127.0.0.1:1", "queue_depth": "7", "drain": "3s", "derp": "false", "debug_allow": "10.0.0.1"}
    )
    key = NodePrivate.generate()
    relay = config.relay_config(key)
    assert (relay.private_key, relay.queue_depth, relay.drain_seconds) == (key, 7, 3.0)
    assert (relay.derp_enabled, relay.debug_allow) == (False, config.debug_allow)
    assert not relay.stun_hosts


@pytest.mark.parametrize(
    ("flags", "notice"),
    [
        ({"listen": ":3000"}, "set --access-url"),
        ({"listen": ":3000", "dev": "true"}, "--dev is for this machine"),
        ({"listen": ":3000", "access_url": "http://x.example.com"}, "tokens travel in the clear"),
    ],
)
def test_what_the_operator_should_see(flags: dict[str, str], notice: str) -> None:
    assert any(notice in each for each in load(flags).notices)


def test_nothing_to_say() -> None:
    assert load().notices == ()
    assert load({"listen": ":3000", "access_url": "https://tailnet.example.com"}).notices == ()


def test_connections_are_bounded_by_open_files() -> None:
    config = load_config({}, {}, open_files=1024)
    assert config.max_connections == 768
    assert "raise its limit" in config.notices[0]
