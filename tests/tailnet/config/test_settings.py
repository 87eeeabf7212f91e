"""The coordinator's table: every row of the relay's is in it, or has a reason not to be."""

import re
from dataclasses import fields

from derp.config.settings import SETTINGS as RELAY_SETTINGS
from tailnet.config.coordinator import CoordinatorConfig
from tailnet.config.settings import ABSENT, RELAY_PREFIX, SETTINGS


def test_no_setting_of_the_relay_is_missing() -> None:
    names = set(SETTINGS.by_name)
    missing = {row.name for row in RELAY_SETTINGS if row.name not in names and RELAY_PREFIX + row.name not in names}
    assert missing == set(ABSENT)
    both = {row.name for row in RELAY_SETTINGS if row.name in names and RELAY_PREFIX + row.name in names}
    assert both == set()


def test_an_embedded_row_reads_as_the_relay_s_does() -> None:
    embedded = [row for row in SETTINGS if row.name.startswith(RELAY_PREFIX)]
    assert len(embedded) >= 17
    for row in embedded:
        relays = RELAY_SETTINGS.by_name[row.name.removeprefix(RELAY_PREFIX)]
        assert (row.parse, row.metavar, row.reloadable) == (relays.parse, relays.metavar, relays.reloadable)
        assert row.help.replace("--relay-", "--") == relays.help


def test_every_attribute_is_a_setting() -> None:
    attributes = {row.path.partition(".")[0] for row in SETTINGS}
    derived = {"notices", "given", "stun_may_move", "connections_remedy"}
    assert {each.name for each in fields(CoordinatorConfig)} - attributes == derived


def test_nothing_of_derper_s_and_no_flag_that_is_not_ours() -> None:
    assert [row.name for row in SETTINGS if row.from_derper or row.alias] == []
    flags = {f"--{flag}" for row in SETTINGS for flag in row.flags}
    assert {flag for row in SETTINGS for flag in re.findall(r"--[a-z-]+", row.help)} <= flags


def test_defaults_stand_once_and_help_takes_them_from_there() -> None:
    by_hand = [
        row.name for row in SETTINGS if re.search(r"[0-9]+\S* by default|(true|false),? by default", row.meaning)
    ]
    assert by_hand == []
    helps = {row.name: row.help for row in SETTINGS}
    assert "{" not in "".join(helps.values())
    assert helps["listen"] == "where to serve API, RPC and relay, 127.0.0.1:3000 by default"
    assert helps["relay_queue_bytes"].endswith(", 2 MiB by default")
