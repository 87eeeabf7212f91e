"""`tailnet admin bundle`: everything that somebody who is to help needs to see, in one file without secrets (layer L4).

From the running server over its operator's door (api/health.py, api/support.py, the pages below /debug/), from the
settings and from the store; without the server there is less in it.  Every text passes derp/text.py once more before it
is written, and passwords that stand in the settings are looked for by themselves.
"""

import json
import os
import platform
import ssl
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import click
import trio

from derp.cli_run import FILE
from derp.errors import DerpError
from derp.text import MASK, error_text, fit_lines_to_show
from tailnet.cli.operator_door import open_door, own_url, read_token, token_option
from tailnet.cli.output import console, say_json
from tailnet.config import CoordinatorConfig, load_config
from tailnet.config.shown import shown_settings
from tailnet.errors import ConfigError, TransportError
from tailnet.health.text import health_lines
from tailnet.store.check import check
from tailnet.store.database import Database
from tailnet.transport.fetch import Asker

# Of one page.  A page with 1,000 peers has some hundred KiB, metrics less.
MAX_PAGE_BYTES: Final = 16 * 1024 * 1024
# Explanations of this many pairs: those that do not know each other first.
MAX_EXPLAINED: Final = 50
_NOT_FOUND: Final = 404
_PACKAGES: Final = (
    *("tailnet-derp", "trio", "cryptography", "sqlalchemy", "alembic", "psycopg", "fastapi", "starlette", "hypercorn"),
    *("httpx", "protobuf", "pydantic", "prometheus-client", "click"),
)
# Where in the file, page of the server.
_PAGES: Final = {
    "server/metrics.txt": "/metrics",
    "server/log.txt": "/debug/log",
    "server/settings.json": "/debug/settings",
    "server/derp-map.json": "/debug/derp-map",
    "server/tailnet.json": "/debug/tailnet?format=json",
    "server/relay-check.txt": "/debug/check",
    "server/relay-clients.json": "/debug/clients/?format=json",
    "server/ready.txt": "/readyz",
}
_README: Final = """\
What this is: how a tailnet coordinator was at {now}, for whoever helps with it.

In it: versions; the settings with all that is secret masked; what `tailnet health` found; metrics; the last lines of
the log; the DERP map; who is connected (ids, public keys, addresses of peers), and why peers do not know each other;
how many rows the store has.

Not in it: tokens and their digests, private keys, mesh keys, passwords, other secrets of the settings, and what agents
wrote (logs of start-ups, metadata) or run. Names of users and workspaces, and addresses, can stand in log lines.

What could not be had, and why:
{problems}
"""


@click.command()
@click.argument("file", type=FILE)
@click.option("--url", metavar="URL", help="the running server; without it the one of this machine's settings")
@token_option
@click.option("--store", metavar="URL", help="the store; without it the settings' one, as for `tailnet serve`")
@click.option("--no-store", is_flag=True, help="leave out the check of the store, which reads all of it")
@click.option("--config", type=FILE, metavar="FILE", help="settings as TOML; TAILNET_CONFIG names it too")
@click.option("--json", "as_json", is_flag=True, help="say the outcome as one JSON object")
def bundle(
    file: str,
    url: str | None,
    token_file: str | None,
    store: str | None,
    no_store: bool,
    config: str | None,
    as_json: bool,
) -> None:
    """Write what somebody who is to help needs to FILE, a zip that must not exist yet, without secrets.

    Settings, versions, health, metrics, the last log lines, the DERP map, who is connected and why not, and how the
    store is.  The server is asked over loopback, or with an administrator's token; when it does not answer there is
    less in it.  README.txt inside says what is in it and what is not.
    """
    settings = load_config(config_file=config)
    collected = _Collected(_passwords(settings, store or ""))
    trio.run(_collect, collected, settings, url or own_url(settings), read_token(token_file))
    if not no_store:
        _check_store(collected, store or settings.store)
    size = _write(Path(file), collected)
    if as_json:
        say_json({"file": file, "bytes": size, "parts": sorted(collected.parts), "missing": collected.problems})
        return
    console().print(f"{file}: {len(collected.parts)} parts, {size:,} bytes")
    for problem in collected.problems:
        console().print(f"! not in it: {problem}", style="yellow")


class _Collected:
    """What goes into the file."""

    def __init__(self, passwords: frozenset[str]) -> None:
        self._passwords = passwords
        self.parts: dict[str, str] = {}
        self.problems: list[str] = []

    def add(self, name: str, text: str) -> None:
        """A part, made safe."""
        for password in self._passwords:
            text = text.replace(password, MASK)
        self.parts[name] = fit_lines_to_show(text)

    def add_json(self, name: str, value: object) -> None:
        """A part, a line for each value, so that what is masked in one line leaves the others."""
        self.add(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


async def _collect(collected: _Collected, settings: CoordinatorConfig, url: str, token: str) -> None:
    collected.add_json("versions.json", _versions())
    collected.add_json("settings.json", shown_settings(settings))
    async with open_door(url, token) as door:
        try:
            health = await _json(door, "/health")
        except TransportError as error:
            collected.problems.append(f"all of server/: {error}")
            return
        collected.add_json("health.json", health)
        collected.add("health.txt", "".join(f"{line}\n" for line in health_lines(health)))
        if "checks" not in health:
            collected.problems.append(
                f"all of server/: {url} takes us for a stranger: run this on its machine, or give --token-file"
            )
            return
        is_replica = any(each["check"] == "replicas" and "skipped" not in each for each in health["checks"])
        of_replicas = {"server/replicas.json": "/debug/replicas"} if is_replica else {}
        for name, path in (_PAGES | of_replicas).items():
            await _add_page(collected, door, name, path)
        await _explain(collected, door)


async def _add_page(collected: _Collected, door: Asker, name: str, path: str) -> None:
    try:
        answer = await door.ask(path, MAX_PAGE_BYTES)
    except TransportError as error:
        collected.problems.append(f"{name}: {error}")
        return
    if answer.status == _NOT_FOUND:
        collected.problems.append(f"{name}: this server has no {path.partition('?')[0]}")
        return
    text = answer.body.decode("utf-8", "replace")
    if name.endswith(".json"):
        try:
            collected.add_json(name, json.loads(text))
            return
        except ValueError:
            pass
    collected.add(name, text)


async def _explain(collected: _Collected, door: Asker) -> None:
    """Why peers do not know each other, of those that should."""
    try:
        page = await _json(door, "/debug/tailnet?format=json")
        for a, b in _pairs(page):
            explained = await _json(door, f"/debug/tailnet?format=json&a={a}&b={b}")
            collected.add(f"why/{a}-{b}.txt", "".join(f"{line}\n" for line in explained.get("explanation", ())))
    except TransportError as error:
        collected.problems.append(f"why/: {error}")


def _pairs(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Ends of tunnels, those whose one end was told nothing of the other first."""
    told = {peer["peer_id"]: set(peer["told"]) for peer in page["peers"]}
    tunnels = [(peer["peer_id"], other) for peer in page["peers"] for other in peer["tunnels_to"]]
    return sorted(tunnels, key=lambda pair: pair[1] in told.get(pair[0], ()))[:MAX_EXPLAINED]


async def _json(door: Asker, path: str) -> Any:
    answer = await door.ask(path, MAX_PAGE_BYTES)
    try:
        return json.loads(answer.body)
    except ValueError:
        raise TransportError(f"{path} answers {answer.status} and no JSON") from None


def _check_store(collected: _Collected, url: str) -> None:
    if not url:
        collected.problems.append("store.json: the settings name no store that others can open (--dev)")
        return
    try:
        database = Database.open(url, migrate=False)
        try:
            report = check(database)
        finally:
            database.close()
    except DerpError as error:
        collected.problems.append(f"store.json: {error}")
        return
    found = {
        "store": report.store,
        "kind": report.kind,
        "schema": report.schema,
        "bytes": report.size_bytes,
        "rows": report.rows,
        "servers": [{"version": each.version, "since": f"{each.started_at:%F %T}"} for each in report.servers],
        "problems": list(report.problems),
    }
    collected.add_json("store.json", found)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION, "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _passwords(settings: CoordinatorConfig, store: str) -> frozenset[str]:
    """Passwords and tokens that stand in URLs of the settings."""
    return frozenset(_in_urls(settings.store, store, *settings.derp_map_url))


def _in_urls(*urls: str) -> Iterator[str]:
    for url in urls:
        try:
            password = urlsplit(url).password
        except ValueError:
            continue
        # A short one stands everywhere by chance, and masking it would say where.
        for secret in {password or "", unquote(password or "")}:
            if len(secret) >= 4:
                yield secret


def _write(path: Path, collected: _Collected) -> int:
    now = datetime.now(UTC)
    problems = "\n".join(f"- {each}" for each in collected.problems) or "- nothing"
    collected.add("README.txt", _README.format(now=f"{now:%F %T} UTC", problems=problems))
    try:
        # For its owner alone until he sends it: it says much about his network.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in sorted(collected.parts.items()):
                archive.writestr(name, text.encode("utf-8", "backslashreplace"))
    except FileExistsError:
        raise ConfigError(f"{path}: is there already: name another file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error_text(error)}") from None
    return path.stat().st_size
