"""deploy/alerts.yml: every metric, label and job that a rule names exists; promtool's judgement where it is installed.

A rule over a name that nobody exposes never fires, and nobody notices: hence the comparison with our own pages.
"""

import dataclasses
import math
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from derp.client.probe import Outcome, ProbeKind, ProbeResult
from derp.client.probe_metrics import RunTotals, exposition
from derp.config.settings import SETTINGS
from derp.metrics import MeshReading, SelfCheckReading, TenantReading
from derp.metrics import metrics_page as relay_page
from derp.relay.load import LoadReading
from derp.relay.wellness import Sign
from derp.server.limiter import PAUSED_BY
from derp.server.verify import Verifier
from tailnet.auth.call_out import CallOutEnd
from tailnet.config.settings import SETTINGS as COORDINATOR_SETTINGS
from tailnet.coordinator.core import Statistics
from tailnet.errors import StoreTrouble
from tailnet.metrics import CallersReading, CoordinatorReading, EntranceReading, ReplicaReading, metrics_page
from tailnet.replica.pair import End
from tailnet.store.outbox import KindReading
from tailnet.store.outbox_queue import Loss
from tests.derp.server.test_varz import reading
from tests.support.missing import missing

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "alerts.yml"
TENANTS = {"acme": TenantReading(1.0, 5, 0, dict.fromkeys(PAUSED_BY, 0), 7, 0.5)}
WORDS = {"time", "rate", "increase", "changes", "sum", "max", "by", "offset", "and", "or", "unless"}
DURATION = re.compile(r"\d+[smhd]")


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    assert set(document) == {"groups"}
    assert all(set(group) == {"name", "rules"} for group in document["groups"])
    return [rule for group in document["groups"] for rule in group["rules"]]


def _nothing(kind: str) -> Any:
    """Nought, under whatever labels a number of a reading has."""
    if "Mapping[tuple" in kind:
        return {("one", "other"): 0}
    return {"one": 0} if "Mapping" in kind else 0


def replica_reading() -> ReplicaReading:
    counts = {field.name: _nothing(str(field.type)) for field in dataclasses.fields(ReplicaReading)}
    return ReplicaReading(**counts | {"delays": ((math.inf, 0),), "ends": dict.fromkeys((end.value for end in End), 0)})


def coordinator_reading() -> CoordinatorReading:
    numbers: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Statistics)}
    numbers |= {"departures": {"lost": 0}, "refusals": {}}
    counts = {field.name: _nothing(str(field.type)) for field in dataclasses.fields(CoordinatorReading)}
    counts |= {
        "statistics": Statistics(**numbers),
        "outbox": {"logs": KindReading(0, 0, 0.0, 0, 0, dict.fromkeys(Loss, 0))},
        "identities": CallersReading(dict.fromkeys((end.value for end in CallOutEnd), 0), 0.0, 0, 0, {}, 0, 0.0, 0, 0),
        "entrance": EntranceReading(0, 0, 0, 0, 0, 0, 0),
        "replicas": replica_reading(),
        "store_troubles": {trouble.value: False for trouble in StoreTrouble},
        "store_failures": {trouble.value: 0 for trouble in StoreTrouble},
    }
    return CoordinatorReading(**counts)


def exposed() -> dict[str, dict[str, set[str]]]:
    """Metric -> label -> values, of all our pages; what Prometheus itself adds is added."""
    coordinator = coordinator_reading()
    mesh = (MeshReading("relay2.example", True, 1, 2),)
    questions = dict.fromkeys(Verifier([]).totals(), 0)
    self_check = SelfCheckReading({sign.value: False for sign in Sign}, 1, 0, 0.001)
    relay = dataclasses.replace(
        reading(),
        certificate_expires_at=1.0,
        key_set_ends_at=1.0,
        key_sets={"taken": 1},
        renewal_failures=0,
        mesh=mesh,
        questions=questions,
        self_check=self_check,
        tenants=TENANTS,
        quota_over_bytes={"client": 1},
        load=LoadReading(),
    )
    every_value = {"seconds", "expires_at", "median_seconds", "worst_seconds", "bytes_per_second", "lost_packets"}
    results = [
        ProbeResult(kind, 901, "fra", "901a", Outcome.GOOD, to, family=family, values=dict.fromkeys(every_value, 1.0))
        for kind in ProbeKind
        for to in ("", "901a", "901b")
        for family in (0, 4, 6)
    ]
    totals = RunTotals()
    totals.note_run(results, 1.0)
    pages = metrics_page(lambda: coordinator, lambda: relay)(), exposition(results, 0.0, totals)
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    for page in pages:
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


def jobs() -> set[str]:
    document = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    return {job["job_name"] for job in document["scrape_configs"]}


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """(metric, [(label, values of its matcher)]) of an expression."""
    text = re.sub(r"\bby \([a-z, ]+\)|\[[^\]]+\]", " ", expression)
    for name, matchers in re.findall(r"([a-z_][a-z0-9_]*)(\{[^}]*\})?", re.sub(DURATION, " ", text)):
        if name in WORDS:
            continue
        pairs = re.findall(r'([a-z_]+)(?:=|=~|!=|!~)"([^"]*)"', matchers)
        yield name, [(label, value.split("|")) for label, value in pairs]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_what_a_rule_names_is_exposed(rule: dict[str, Any]) -> None:
    pages = exposed()
    named = list(selectors(rule["expr"]))
    assert named
    for metric, matchers in named:
        assert metric in pages
        for label, values in matchers:
            there = jobs() if label == "job" else pages[metric][label] | {""}
            assert set(values) <= there, (metric, label)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_rule_tells_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "action", "runbook_url"}
    metrics = [name for name, _ in selectors(rule["expr"])]
    kept = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"by \(([a-z, ]+)\)", rule["expr"]))))
    pages = exposed()
    for label in re.findall(r"\$labels\.([a-z_]+)", " ".join(rule["annotations"].values())):
        # sum by () keeps only what it names.
        assert label in (kept or {"instance", "job"} | set(pages[metrics[0]]))


RUNBOOK = (DEPLOY.parent / "docs" / "alerts.md").read_text()


def sections() -> dict[str, str]:
    """What the document says under each heading of the third order."""
    parts = re.split(r"^### (.+)$", RUNBOOK, flags=re.MULTILINE)[1:]
    return {name: text.partition("\n## ")[0].strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_rule_leads_to_its_section(rule: dict[str, Any]) -> None:
    name, url = rule["alert"], rule["annotations"]["runbook_url"]
    repository = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    assert url == f"{repository}/blob/main/docs/alerts.md#{name.lower()}"
    text = sections()[name]
    assert text.startswith(f"{rule['labels']['severity']}. ")
    assert len(text) > 80


def test_the_runbook_is_about_rules_and_settings_that_exist() -> None:
    assert list(sections()) == [rule["alert"] for rule in rules()]  # in their order, none besides
    anchors = {name.lower() for name in sections()}
    assert set(re.findall(r"\(#([a-z]+)\)", RUNBOOK)) <= anchors
    flags = {flag for table in (SETTINGS, COORDINATOR_SETTINGS) for setting in table for flag in setting.flags}
    assert {"mesh-with", "queue-total"} <= set(re.findall(r"`--([a-z-]+)", RUNBOOK)) <= flags | {"region"}
    assert set(re.findall(r"\b((?:derp|tailnet)_[a-z_]+)", RUNBOOK)) <= set(exposed())


def test_the_names_of_rules_are_unique() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 20


def test_the_check_can_fail() -> None:
    assert [name for name, _ in selectors('rate(derp_drops_total{reason="x"}[5m]) > 3 * 86400')] == ["derp_drops_total"]
    assert "derp_drops_total" not in exposed()


# (metric and labels, its values minute by minute) -> at this minute exactly these alerts.
SERIES = [
    ('derp_probe_results{job="derp-probe",instance="p1",outcome="good"}', "0x10"),
    ('derp_tenant_limited_total{job="derp",instance="r1",tenant="acme",limit="node"}', "0+5x10"),
    ('derp_tenant_limited_total{job="derp",instance="r1",tenant="acme",limit="tenant"}', "0+5x10"),
    ('derp_tenant_quota_used_ratio{job="derp",instance="r1",tenant="acme"}', "0.9x10"),
    ('derp_tenant_quota_used_ratio{job="derp",instance="r1",tenant="other"}', "1.1x10"),
    ('derp_tenant_quota_used_ratio{job="derp",instance="r1",tenant="calm"}', "0.1x10"),
    ('up{job="derp",instance="r1"}', "0x10"),
    ('derp_certificate_expires_timestamp_seconds{job="derp",instance="r1"}', "86400x10"),
    ('derp_probe_up{kind="packet",region_id="1",region="fra",node="1a",to=""}', "1x10"),
    ('derp_probe_up{kind="packet",region_id="1",region="fra",node="1a",to="1b"}', "0x10"),
    ('derp_probe_up{kind="tls",region_id="1",region="fra",node="1a",to=""}', "0x10"),
    (
        'derp_probe_certificate_expires_timestamp_seconds{kind="tls",region_id="1",region="fra",node="1a",to=""}',
        "90000x10",
    ),
    ('derp_probe_up{kind="tls",region_id="1",region="fra",node="1b",to=""}', "0x10"),
    ('derp_probe_up{kind="quic",region_id="1",region="fra",node="1b",to=""}', "0x10"),
    (
        'derp_probe_certificate_expires_timestamp_seconds{kind="tls",region_id="1",region="fra",node="1c",to=""}',
        "90000x10",
    ),
    ('derp_probe_up{kind="tls",region_id="1",region="fra",node="1c",to=""}', "1x10"),
    ('tailnet_replica_sessions_total{job="tailnet",instance="c1",end="left"}', "0+5x10"),
    ('tailnet_replica_sessions_total{job="tailnet",instance="c2",end="gap"}', "0+5x10"),
]
FIRED = {
    "DerpRelayNotScraped": 1,
    "DerpAtItsLimit": 1,  # not DerpTenantAtItsLimit, which takes an hour
    "DerpTenantQuotaNearlyUsed": 1,
    "DerpTenantQuotaUsedUp": 1,
    "DerpCertificateEndsSoon": 1,
    "DerpProbeBlind": 1,
    "DerpNodeDown": 1,  # 1b: nothing was seen of its certificate
    "DerpQuicSilent": 1,
    "DerpMeshPairBad": 1,
    "DerpProbeCertificateEndsSoon": 1,  # 1a, not 1c, which has long enough
    "TailnetReplicaSessionsEnd": 1,  # of c2, not of c1, whose others are updated
}


NO_PROMTOOL = "no promtool here: Debian has it in the package prometheus"


def full_pages() -> dict[str, bytes]:
    """Each page that Prometheus reads, with every family that it can have."""
    relay = dataclasses.replace(
        reading(),
        certificate_expires_at=1.0,
        key_set_ends_at=1.0,
        key_sets={"taken": 1},
        renewal_failures=0,
        questions={"allowed": 1},
        closed={"flood": 1},
        mesh=(MeshReading("relay2.example", True, 1, 2),),
        tenants=TENANTS,
        quota_acts={"told": 1},
        quota_over_bytes={"client": 1},
    )
    result = ProbeResult(ProbeKind.TLS, 901, "fra\x1b", '9"01a', Outcome.GOOD, values={"seconds": 1.0})
    totals = RunTotals()
    totals.note_run([result], 1.0)
    return {
        "relay": relay_page(lambda: relay)(),
        "coordinator": metrics_page(coordinator_reading, lambda: relay)(),
        "prober": exposition([result], 0.0, totals),
    }


@pytest.mark.parametrize("page", ["relay", "coordinator", "prober"])
def test_promtool_finds_nothing_to_say_of_a_page(page: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        missing(NO_PROMTOOL)
    text = full_pages()[page]
    for given, is_well in ((text, True), (text + b"# TYPE a_total gauge\na_total 1\n", False)):
        done = subprocess.run([promtool, "check", "metrics"], input=given, capture_output=True, check=False, timeout=60)
        assert (done.returncode == 0 and not done.stderr) is is_well, done.stdout + done.stderr
    assert b"_build_info{" in text or page == "prober"


def test_promtool_finds_them_well_and_they_fire(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        missing(NO_PROMTOOL)
    # Counted with an expression: texts of annotations would have to be repeated otherwise.
    counted = [
        {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', "eval_time": "10m",
         "exp_samples": [{"labels": "{}", "value": FIRED[name]}] if name in FIRED else []}
        for name in (rule["alert"] for rule in rules())
    ]  # fmt: skip
    series = [{"series": name, "values": values} for name, values in SERIES]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": counted}
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(path)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
