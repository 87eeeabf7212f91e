"""deploy/prometheus.yml: the shape Prometheus wants, a path that is served, and the ports of the other samples."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "prometheus.yml"
# https://prometheus.io/docs/prometheus/latest/configuration/configuration/, as far as it is used here.
KNOWN = {"job_name", "scrape_interval", "scrape_timeout", "metrics_path", "scheme", "tls_config", "static_configs"}


def jobs() -> list[dict[str, Any]]:
    document = yaml.safe_load(CONFIGURATION.read_text())
    assert set(document) == {"rule_files", "scrape_configs"}
    assert [(CONFIGURATION.parent / name).exists() for name in document["rule_files"]] == [True]
    found: list[dict[str, Any]] = document["scrape_configs"]
    return found


def test_job_names_are_unique() -> None:
    names = [job["job_name"] for job in jobs()]
    assert len(set(names)) == len(names) == 4


def test_targets_on_this_machine_are_where_the_samples_listen() -> None:
    deploy = CONFIGURATION.parent
    listens = {
        "derp": tomllib.loads((deploy / "relay.toml").read_text())["listen"],
        "tailnet": tomllib.loads((deploy / "tailnet.toml").read_text())["listen"],
    }
    found = re.search(r"--listen (\S+)", (deploy / "derp-probe.service").read_text())
    assert found is not None
    listens["derp-probe"] = [found[1]]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs()}
    for name, listen in listens.items():
        assert targets[name] == listen, name


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job["job_name"])
def test_each_job_has_the_shape(job: dict[str, Any]) -> None:
    assert set(job) <= KNOWN
    assert job["scheme"] in ("http", "https")
    assert (job["scheme"] == "https") == ("tls_config" in job)
    assert job["metrics_path"] == "/metrics"
    interval, timeout = (int(job[name].removesuffix("s")) for name in ("scrape_interval", "scrape_timeout"))
    assert timeout <= interval
    for group in job["static_configs"]:
        assert set(group) == {"targets", "labels"}
        assert all(re.fullmatch(r"[a-z0-9.-]+:\d+", target) for target in group["targets"])
        assert all(isinstance(value, str) for value in group["labels"].values()), "labels are text"
