"""Dockerfile and compose file, as far as they can be judged without an engine."""

import ast
import re
import shlex
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from derp.config import RelayConfig, load_config
from derp.config.settings import SETTINGS
from derp.errors import ConfigError
from derp.keys import NodePrivate
from tailnet.cli.root import cli as tailnet

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
STEP = re.compile(r"^([A-Z]+) (.+)$")


def steps() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    found = [STEP.match(line) for line in text.splitlines() if line.strip()]
    assert all(found)
    return [(step[1], step[2]) for step in found if step]


def service() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(document) == {"services", "volumes"}
    derp: dict[str, Any] = document["services"]["derp"]
    return derp


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", path.read_text()))


# The image.


def test_base_images_are_pinned_to_a_python_we_run_on() -> None:
    bases = [shlex.split(rest)[0] for step, rest in steps() if step == "FROM"]
    assert len(bases) == 2
    assert set(bases) == {"python:3.11-slim-bookworm"}


def test_it_runs_as_a_number_that_is_not_root_and_as_process_1() -> None:
    last = dict(steps())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["ENTRYPOINT"] == '["derp", "serve"]'  # no shell in between would pass signals on
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert [step for step, _ in steps()].index("USER") > [step for step, _ in steps()].index("ENV")


def test_pods_of_coordinators_start_one_in_this_image() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    relay, coordinator = (each["spec"]["template"]["spec"]["containers"][0] for each in documents)
    assert relay["image"] == coordinator["image"] == service()["image"]
    # `args` alone would be words behind the entrypoint, which is the relay's.
    program, *words = [*coordinator["command"], *coordinator["args"]]
    assert program == "tailnet"
    given = [word.replace("$(POD_IP)", "192.0.2.1") for word in words]
    result = CliRunner().invoke(tailnet, [*given, "--help"])
    assert result.exit_code == 0, result.output


def test_nothing_is_fetched_without_a_hash_and_no_cache_is_kept() -> None:
    assert not any(step == "ADD" or "curl" in rest or "wget" in rest for step, rest in steps())
    installs = [command for step, rest in steps() if step == "RUN" for command in rest.split("&&") if "pip" in command]
    assert len(installs) == 2
    for command in installs:
        assert "--no-cache-dir" in command
        assert "--require-hashes" in command or "--no-index" in command


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source
        for step, rest in steps()
        if step == "COPY" and not rest.startswith("--from")
        for source in shlex.split(rest)[:-1]
    ]
    assert sorted(kept) == sorted(source.removeprefix("./") for source in sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_its_environment_is_ours() -> None:
    words = shlex.split(dict(steps())["ENV"])
    names = {word.partition("=")[0] for word in words}
    assert {name for name in names if name.startswith("DERP_")} <= {
        setting.environment for setting in SETTINGS.by_name.values()
    }


# What is in it.


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested, shipped = pins(ROOT / "requirements.lock"), pins(DEPLOY / "requirements.lock")
    assert shipped.items() <= tested.items()
    assert "setuptools" in shipped
    assert {"pytest", "mypy", "uv"} & set(shipped) == set(), "tools do not belong into the image"


def test_the_image_has_all_that_the_packages_import() -> None:
    shipped = set(pins(DEPLOY / "requirements.lock"))
    distributions = packages_distributions()
    missing = set()
    agents = {"asyncssh", "trio_asyncio"}  # of the extra `agent`: the image serves, and is nobody's agent
    for package in ("derp", "tailnet"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in {name.partition(".")[0] for name in names} - {"derp", "tailnet"} - agents:
                    if name in sys.stdlib_module_names:
                        continue
                    found = {one.lower().replace("_", "-") for one in distributions.get(name, [name])}
                    if not found & shipped:
                        missing.add((name, path.relative_to(ROOT).as_posix()))
    assert missing == set()


# The compose file.


def test_its_settings_load(tmp_path: Path) -> None:
    environ = {
        name: re.sub(r"\$\{[A-Z_]+:\?[^}]*\}", "192.0.2.7", re.sub(r"\$\{[A-Z_]+:-\}", "", value))
        for name, value in service()["environment"].items()
    }
    assert not any("$" in value for value in environ.values())
    image = dict(word.partition("=")[::2] for word in shlex.split(dict(steps())["ENV"]) if word.startswith("DERP_"))
    image = {name: value.replace("/var/lib/derp", str(tmp_path)) for name, value in image.items()}
    with pytest.raises(ConfigError, match="strangers"):
        load_config({}, image | environ, open_files=1 << 20)
    config = load_config({}, image | environ | {"DERP_OPEN": "true"}, open_files=1 << 20)
    assert config.tls is not None
    assert config.tls.self_signed
    assert config.hostname == "192.0.2.7"
    inside = {int(port.split(":")[1].split("/")[0]) for port in service()["ports"]}
    assert inside == {config.listen[0][1], config.http_port, config.stun_port}
    # The printed map has the inner numbers, so the outer ones must be the same.
    assert all(port.split(":")[0] == port.split(":")[1].split("/")[0] for port in service()["ports"])


def test_it_is_locked_down_and_waits_for_the_drain() -> None:
    derp = service()
    assert derp["read_only"] is True
    assert derp["cap_drop"] == ["ALL"]
    assert derp["security_opt"] == ["no-new-privileges:true"]
    assert int(derp["stop_grace_period"].removesuffix("s")) > RelayConfig(NodePrivate.generate()).drain_seconds
    assert derp["ulimits"]["nofile"]["soft"] > RelayConfig(NodePrivate.generate()).max_connections
    assert derp["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}


def test_its_health_check_is_python_that_compiles() -> None:
    kind, program, option, code = service()["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    compile(code, "healthcheck", "exec")
