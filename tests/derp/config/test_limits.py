"""The file of --limits: what it says is taken, and every mistake has its place and what to write instead."""

import re
import tomllib
from pathlib import Path

import pytest

from derp.config import limits as module
from derp.config.limits import load_limits
from derp.errors import ConfigError
from derp.keys import NodePrivate
from derp.relay.limits import MAX_TENANTS, ClientLimits, Limits, Quota, Rate, TenantLimits
from tests.derp.config.test_load import LOCAL, load

SAMPLE = Path(__file__).resolve().parents[3] / "deploy" / "limits.toml"
ONE, TWO = (NodePrivate(bytes([n]) * 32).public() for n in (1, 2))
WHOLE = f"""
[node]
bytes_per_second = "100MB"
packets_per_second = 200_000

[client]
bytes_per_second = 1_250_000
burst_bytes = "2500KB"
bytes_per_month = "1TiB"
used_up_bytes_per_second = 100_000

[tenants.acme]
weight = 3
bytes_per_second = "10MB"
bytes_per_day = "100GB"
used_up = "refuse"
keys = ["{ONE}"]

[tenants.acme.client]
packets_per_second = 500
burst_packets = 900

[tenants.other]

[keys."{TWO}"]
bytes_per_second = 7
"""


def read(tmp_path: Path, text: str) -> Limits:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    return load_limits(path)


def test_everything_it_may_say(tmp_path: Path) -> None:
    floor = Rate(100_000, 10_000)
    assert read(tmp_path, WHOLE) == Limits(
        Rate(100_000_000, 10_000_000, 200_000, 20_000),
        ClientLimits(Rate(1_250_000, 2_500_000), Quota(0, 1 << 40, floor)),
        {
            "acme": TenantLimits(
                Rate(10_000_000, 1_000_000),
                Quota(100 * 10**9, 0, Rate(16_384, 1638), refuses=True),
                3.0,
                ClientLimits(Rate(packets_per_second=500, burst_packets=900)),
            ),
            "other": TenantLimits(),
        },
        {ONE.raw: "acme"},
        {TWO.raw: ClientLimits(Rate(7))},
    )


def test_an_empty_one_limits_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Limits()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[node", "is not TOML: "),
        ("[relay]", "relay: is no key here: node, client, tenants, keys are"),
        ("node = 5", "node: wants a table, got 5"),
        ("[node]\nweight = 3", "node.weight: is no key here: bytes_per_second, "),
        ("[client]\nbytes_per_second = -1", "client.bytes_per_second: wants a number of bytes"),
        ("[client]\nbytes_per_second = true", "client.bytes_per_second: wants a number of bytes"),
        ("[client]\nburst_bytes = 5", "client.burst_bytes: has no effect without bytes_per_second"),
        ("[client]\npackets_per_second = 0", "client.packets_per_second: wants a whole number from 1"),
        ('[client]\nused_up = "refuse"', "client.used_up: has no effect without bytes_per_day"),
        ('[client]\nbytes_per_day = 5\nused_up = "close"', "client.used_up: wants one of throttle, refuse"),
        ("[client]\nbytes_per_day = 5\nbytes_per_month = 4", "client.bytes_per_day: is more than bytes_per_month"),
        (
            '[client]\nbytes_per_day = 5\nused_up = "refuse"\nused_up_bytes_per_second = 1',
            'client.used_up_bytes_per_second: has no effect with used_up = "refuse"',
        ),
        ('[tenants."a b"]', "tenants.a b: wants a name of up to 63 letters"),
        ("[tenants.a]\nweight = 0", "tenants.a.weight: wants a number above 0"),
        ("[tenants.a]\nweight = 5000", "tenants.a.weight: wants a number from 0.001 to 1000"),
        ("[tenants.a.client]\nkeys = []", "tenants.a.client.keys: is no key here"),
        ('[tenants.a]\nkeys = ["nodekey:00"]', "tenants.a.keys: "),
        (f"[tenants.a]\nkeys = ['{ONE}']\n[tenants.b]\nkeys = ['{ONE}']", "of tenant 'a' too"),
        ("[keys.x]", "keys.x: "),
        (f"[keys.'{ONE}']\n[keys.'nodekey:{ONE.raw.hex().upper()}']", "in other letters"),
        ("[tenants.acme]\n[tenants.Acme]", "tenants.Acme: is tenants.acme in other letters: make them one table"),
        ('[client]\nbytes_per_second = "10Mbps"', 'client.bytes_per_second: wants a number of bytes such as "10GB"'),
        ('[client]\nbytes_per_second = "-5MB"', "client.bytes_per_second: wants a number of bytes"),
        ("[client]\nbytes_per_day = 1.5", "client.bytes_per_day: wants a number of bytes"),
        ('[client]\npackets_per_second = "5k"', "client.packets_per_second: wants a whole number from 1"),
        ("[tenants.a]\nweight = -1", "tenants.a.weight: wants a number above 0"),
        ("[node]\nbytes_per_day = 5", "node.bytes_per_day: is no key here: did you mean bytes_per_second?"),
        ("[tenant.a]", "tenant: is no key here: did you mean tenants?"),
        ("\n".join(f"[tenants.t{n}]" for n in range(MAX_TENANTS + 1)), "tenants: has 1,001 tenants, 1,000 is the most"),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/limits.toml: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigError, match="/nonexistent: cannot read the limits"):
        load_limits(Path("/nonexistent"))


def test_two_files_may_not_both_limit_each_client(tmp_path: Path) -> None:
    rates, limits = tmp_path / "rate.json", tmp_path / "limits.toml"
    rates.write_text('{"PerClientRateLimitBytesPerSec": 5}')
    limits.write_text("[client]\nbytes_per_second = 5")
    with pytest.raises(ConfigError, match="limits each client, and so does"):
        load(LOCAL | {"rate_config": str(rates), "limits": str(limits)})
    limits.write_text("[tenants.a]\nbytes_per_second = 5")
    config = load(LOCAL | {"rate_config": str(rates), "limits": str(limits)})
    assert (config.rate, config.limits.tenants["a"].rate) == (Rate(5), Rate(5))


def test_quotas_need_a_ledger(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    for table in ("client", "tenants.a", "tenants.a.client", f"keys.'{ONE}'"):
        limits.write_text(f"[{table}]\nbytes_per_day = 5")
        with pytest.raises(ConfigError, match="has quotas, and what was used is read off a ledger: set --ledger"):
            load(LOCAL | {"limits": str(limits)})
        assert load(LOCAL | {"limits": str(limits), "ledger": str(tmp_path / "ledger")}).limits.has_quotas


def test_a_quota_of_a_month_needs_a_ledger_that_keeps_a_month(tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    given = LOCAL | {"limits": str(limits), "ledger": str(tmp_path / "ledger")}
    for table in ("client", "tenants.a", "tenants.a.client", f"keys.'{ONE}'"):
        limits.write_text(f"[{table}]\nbytes_per_month = 5")
        with pytest.raises(ConfigError, match="--ledger-days: forgets what was used in a month, of which"):
            load(given | {"ledger_days": 30})
        assert load(given | {"ledger_days": 31}).limits == load(given).limits
        limits.write_text(f"[{table}]\nbytes_per_day = 5")
        assert load(given | {"ledger_days": 1}).limits.has_quotas


def test_the_sample_limits_nobody_until_something_is_taken_out_of_its_comments(tmp_path: Path) -> None:
    text = SAMPLE.read_text()
    as_it_is = read(tmp_path, text)
    assert as_it_is == Limits(tenants=dict.fromkeys(("default", "acme"), TenantLimits()))
    text = re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)
    whole = read(tmp_path, text)
    assert whole.of_tenant("somebody").quota.bytes_per_month == 10**12
    document = tomllib.loads(text)
    assert set(document["client"]) == set(module._CLIENT), "it names every key"
    assert set(document["node"]) == set(module._RATE)
    assert {"weight", "keys", "client"} <= set(document["tenants"]["acme"])
