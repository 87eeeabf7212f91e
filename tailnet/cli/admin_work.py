"""What the commands that administer have in common (layer L4): the store, who is at work, names of things, questions.

Changes are those of the HTTP API, services/administration/, made in this process; servers see them within a second.
"""

import os
import pwd
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from tailnet.cli.store_options import store_url
from tailnet.services.administration.filters import parse_time
from tailnet.services.administration.resources import RESOURCES, Resource
from tailnet.services.administration.service import MAX_PAGE, Actor, Administration
from tailnet.store.store import Store

_DURATION: Final = re.compile(r"(\d{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MAX_NAMED: Final = 5
# Fields that hold the id of something else, and what that is.
REFERENCES: Final = {
    "user_id": "user",
    "owner_id": "user",
    "workspace_id": "workspace",
    "parent_id": "agent",
    "agent_id": "agent",
}


@contextmanager
def administration(store: str | None, config: str | None) -> Iterator[Administration]:
    """Administration of the store that was meant.  Raises ConfigError, StoreError."""
    opened = Store.open(store_url(store, config))
    try:
        yield Administration(opened)
    finally:
        opened.close()


def local_actor() -> Actor:
    """Who is at this terminal, for the account of changes."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = f"uid {os.getuid()}"  # a container without a list of users
    behind = os.environ.get("SUDO_USER", "")
    return Actor("local", f"{name}@{socket.gethostname()}" + (f" (sudo by {behind[:64]})" if behind else ""))


def find_id(work: Administration, resource: Resource, text: str) -> Any:
    """The id of what a person named: an id, or a name that one thing has; workspaces as OWNER/NAME too."""
    label = resource.label
    if not label or resource.name == "token" or _looks_like_an_id(text):
        return resource.parse_id(text)
    filters: dict[str, Any] = {label: text}
    if resource.name == "workspace" and "/" in text:
        owner, _, filters["name"] = text.partition("/")
        filters["owner_id"] = find_id(work, RESOURCES["user"], owner)
    if label not in resource.kind.filters:
        raise click.ClickException(f"{text!r} is no id of a {resource.name}")
    found = work.page(resource, filters, limit=_MAX_NAMED).items
    if not found:
        raise click.ClickException(f"there is no {resource.name} {text!r} in {work.store.shown}")
    if len(found) > 1:
        several = ", ".join(str(each["id"]) for each in found)
        raise click.ClickException(f"several {resource.plural} are called {text!r}, name one by its id: {several}")
    return resource.parse_id(found[0]["id"])


def find_reference(work: Administration, field: str, text: str) -> str:
    """The id that a field of this name is to hold, as text."""
    resource = RESOURCES[REFERENCES[field]]
    return str(find_id(work, resource, text))


def every(work: Administration, resource: Resource, filters: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Things by their ids, page after page; at most `limit` if that is not 0."""
    after, count = None, 0
    while True:
        page = work.page(resource, filters, after, min(MAX_PAGE, limit - count) if limit else MAX_PAGE)
        yield from page.items
        count += len(page.items)
        if not page.last or (limit and count >= limit):
            return
        after = resource.parse_id(page.last)


def confirm(sentence: str, *, yes: bool) -> None:
    """Ask whether that is meant; without a terminal there is nobody to ask, so it has to be said beforehand."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{sentence}? Nobody can be asked here: add --yes")
    click.confirm(f"{sentence}?", abort=True, err=True)


def duration(text: str) -> timedelta:
    """`90s`, `12h`, `30d`.  Raises click.BadParameter."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"wants a duration such as 90s, 12h or 30d, got {text!r:.80}")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def moment(text: str) -> str:
    """A time, or a duration from now on, as JSON has it.  Raises click.BadParameter."""
    if _DURATION.fullmatch(text):
        return (datetime.now(UTC) + duration(text)).isoformat()
    try:
        return parse_time(text).isoformat()
    except ValueError:
        wanted = "a duration such as 30d, or a time such as 2026-01-31T08:00:00Z"
        raise click.BadParameter(f"wants {wanted}, got {text!r:.80}") from None


def _looks_like_an_id(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4
