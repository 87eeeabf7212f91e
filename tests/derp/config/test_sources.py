"""Sources and their order, others' variables under our prefix, advice about names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from derp.config import parse
from derp.config.load import load_config
from derp.config.relay import RelayConfig, ServerConfig
from derp.config.setting import Setting, Table
from derp.config.sources import MAX_FILE_BYTES, Given, read_file, read_sources
from derp.errors import ConfigError

DEV = {"dev": "true"}
TABLE = Table(
    "X_",
    ServerConfig,
    (
        Setting("port", parse.port, "PORT", "a port", "drain_seconds"),
        Setting("inner_size", parse.whole(1, 9), "NUMBER", "a size", "log_format", former=("size",)),
        Setting("inner_name", parse.string, "NAME", "a name", "log_level", elsewhere=("title", "label")),
    ),
)


def load(
    flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, toml: str | None = None
) -> RelayConfig:
    return load_config(flags or {}, environ or {}, toml, open_files=1 << 20)


def read(flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, toml: str | None = None) -> Given:
    return read_sources(TABLE, flags or {}, environ or {}, toml)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "relay.toml"
        path.write_text(text)
        return str(path)

    return write


def test_later_sources_win(toml: Callable[[str], str]) -> None:
    file = toml('dev = true\nqueue_depth = 1\nqueue_bytes = 200_000\nhome = "blank"')
    config = load({"queue_depth": "3"}, {"DERP_QUEUE_DEPTH": "2", "DERP_QUEUE_BYTES": "300000"}, file)
    assert (config.queue_depth, config.queue_bytes, config.home) == (3, 300_000, "blank")
    assert config.tcp_write_timeout_seconds == 2.0


def test_the_environment_names_the_file(toml: Callable[[str], str]) -> None:
    assert load({}, {"DERP_CONFIG": toml("dev = true\nstun = false")}).stun_enabled is False


def test_empty_and_foreign_variables_are_passed_over() -> None:
    environ = {"DERP_QUEUE_DEPTH": "", "DERP_PORT_443_TCP": "tcp://10.0.0.1:443", "DERP_SERVICE_HOST": "10.0.0.1"}
    assert load(DEV, environ | {"DERPX": "1", "PATH": "/bin"}).queue_depth == 512


# Variables of others.

# `kubectl get services` and what a container of their namespace is given.
SERVICES = {
    "DERP_SERVICE_HOST": "10.0.0.1",
    "DERP_SERVICE_PORT": "443",
    "DERP_SERVICE_PORT_HTTPS": "443",
    "DERP_PORT": "tcp://10.0.0.1:443",
    "DERP_PORT_443_TCP": "tcp://10.0.0.1:443",
    "DERP_PORT_443_TCP_PROTO": "tcp",
    "DERP_PORT_443_TCP_PORT": "443",
    "DERP_PORT_443_TCP_ADDR": "10.0.0.1",
    # derp-stun, derp-http, derp-relay-2
    "DERP_STUN_PORT": "udp://10.0.0.2:3478",
    "DERP_STUN_SERVICE_HOST": "10.0.0.2",
    "DERP_STUN_PORT_3478_UDP": "udp://10.0.0.2:3478",
    "DERP_STUN_PORT_3478_UDP_ADDR": "10.0.0.2",
    "DERP_HTTP_PORT": "tcp://[fd00::3]:80",
    "DERP_RELAY_2_PORT_5_SCTP": "sctp://10.0.0.4:5",
    "DERP_RELAY_2_SERVICE_PORT_CHECK_TLS": "5",
    # Docker's links between containers
    "DERP_NAME": "/web/derp",
    "DERP_ENV_PYTHON_VERSION": "3.11",
}


@pytest.mark.parametrize("flags", [{}, {"stun_port": "3479", "http_port": "-1"}])
def test_links_to_services_are_no_settings(flags: dict[str, str]) -> None:
    config = load(DEV | flags, SERVICES)
    assert config.stun_port == int(flags.get("stun_port", 3478))
    assert load(DEV | flags, {}).notices == config.notices


@pytest.mark.parametrize(("name", "text"), sorted(SERVICES.items()))
def test_each_link_alone(name: str, text: str) -> None:
    """So that none hides behind another; and with a value that is no link, a setting's name is one again."""
    assert load(DEV, {name: text}).stun_port == 3478
    if name in ("DERP_STUN_PORT", "DERP_HTTP_PORT"):
        assert "wants a whole number" in refused(lambda: load(DEV, {name: text.replace("://", ":")}))


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("DERP_DOMAIN", "DERP_HOSTNAME"),
        ("DERP_HOST", "DERP_HOSTNAME"),
        ("DERP_ADDR", "DERP_LISTEN"),
        ("DERP_PORT", "DERP_LISTEN"),
        ("DERP_CERTS", "DERP_CERT_DIR"),
        ("DERP_CERTDIR", "DERP_CERT_DIR"),
        ("DERP_CERTMODE", "DERP_CERT_MODE"),
        ("DERP_CONFIG_PATH", "DERP_KEY_FILE"),
        ("DERP_STUN_ENABLE", "DERP_STUN"),
        ("DERP_RUN_DERP", "DERP_DERP"),
    ],
)
def test_the_names_of_other_images_are_told_ours(variable: str, name: str) -> None:
    said = refused(lambda: load(DEV, {variable: "1"}))
    assert said == f"environment: {variable}: there is no such setting: it is called {name} here"


def test_who_says_both_names_is_told_which_one_counts(toml: Callable[[str], str]) -> None:
    """For a way back: the old image's variables stay where they are."""
    others = {"DERP_DOMAIN": "old.example", "DERP_ADDR": ":1"}
    flags = {"dev": "true", "listen": "127.0.0.1:0"}
    config = load(flags, others, toml('hostname = "new.example"'))
    assert config.hostname == "new.example"
    assert [notice for notice in config.notices if "is not read here" in notice] == [
        f"environment: DERP_DOMAIN: is not read here: {toml('hostname = 0')}: hostname is what counts".replace(
            "hostname = 0", "hostname"
        ),
        "environment: DERP_ADDR: is not read here: flags: --listen/-a is what counts",
    ]


def test_nobody_s_variable_is_an_error_with_its_place() -> None:
    assert refused(lambda: load(DEV, {"DERP_QUEUE_DEPHT": "1"})) == (
        "environment: DERP_QUEUE_DEPHT: there is no such setting: did you mean DERP_QUEUE_DEPTH?"
    )
    assert refused(lambda: load(DEV, {"DERP_XYZZY": "1"})) == "environment: DERP_XYZZY: there is no such setting"


# The engine, on a table of its own.


def test_a_table_of_the_file_holds_settings_that_begin_with_its_name(toml: Callable[[str], str]) -> None:
    given = read(toml=toml("port = 1\n[inner]\nsize = 3\nname = 'a'"))
    assert given.values() == {"port": 1, "inner_size": 3, "inner_name": "a"}
    assert given.place("inner_size").endswith("relay.toml: inner.size")
    assert read(toml=toml("inner.size = 4")).get("inner_size") == 4
    assert refused(lambda: read(toml=toml("[inner]\nsise = 3"))).endswith(
        "relay.toml: 'inner.sise': there is no such setting: did you mean inner_size?"
    )
    assert refused(lambda: read(toml=toml("[outer]\nsize = 3"))).endswith("'outer': there is no such setting")


def test_a_former_name_is_taken_and_not_beside_the_new_one(toml: Callable[[str], str]) -> None:
    assert read(toml=toml("size = 3")).get("inner_size") == 3
    assert read(environ={"X_SIZE": "4"}, toml=toml("size = 3")).get("inner_size") == 4
    assert refused(lambda: read(toml=toml("size = 3\ninner_size = 3"))).endswith(
        ": inner_size: the same setting as " + toml("") + ": size: leave one of them out"
    )
    assert refused(lambda: read(environ={"X_SIZE": "4", "X_INNER_SIZE": "4"})).startswith(
        "environment: X_INNER_SIZE: the same setting as environment: X_SIZE"
    )


def test_advice_in_files_too(toml: Callable[[str], str]) -> None:
    assert refused(lambda: read(toml=toml("title = 'a'"))).endswith(
        "'title': there is no such setting: it is called inner_name here"
    )


def test_an_embedded_table_is_read_by_its_own_names() -> None:
    given = read({"inner_size": "3"})
    inner = given.under("inner_")
    assert (inner.get("size"), "size" in inner, "name" in inner) == (3, True, False)
    assert (inner.flag("name"), inner.place("size")) == ("--inner-name", "flags: --inner-size")
    inner.notices.append("seen")
    assert given.notices == ["seen"]
    assert refused(lambda: inner.fail("name", "is missing")) == "flags: --inner-name: is missing"


def test_attributes_by_their_path() -> None:
    table = Table(
        "X_",
        ServerConfig,
        (
            Setting("a", parse.string, "A", "a", "log_level"),
            Setting("b", parse.string, "B", "b", part_of="tls"),
            Setting("c", parse.string, "C", "c").embedded("in_", "inside"),
        ),
    )
    given = read_sources(table, {"a": "1", "b": "2", "in_c": "3"}, {})
    assert given.attributes() == {"log_level": "1"}
    assert given.attributes("inside") == {"c": "3"}


def test_files_have_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * MAX_FILE_BYTES)
    assert len(read_file(path, "thing")) == MAX_FILE_BYTES
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert refused(lambda: read_file(path, "thing")) == f"{path}: is no thing: it has more than 1,048,576 bytes"
    assert refused(lambda: read_file(tmp_path, "thing")).endswith("cannot read the thing: Is a directory")
