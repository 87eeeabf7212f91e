"""`tailnet admin user|token|workspace|agent|app|script`: create, list, show, update, delete (layer L4).

All kinds have the same commands, made from services/administration/resources.py: a field is an option.  What belongs
to one kind alone is in admin_tokens.py.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click

from derp.cli_run import FILE
from derp.text import error_text
from tailnet.cli.admin_work import (
    REFERENCES,
    administration,
    confirm,
    every,
    find_id,
    find_reference,
    local_actor,
    moment,
)
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options
from tailnet.cli.tables import print_fields, print_table
from tailnet.services.administration import operations
from tailnet.services.administration.filters import parse_filters
from tailnet.services.administration.resources import RESOURCES, Resource
from tailnet.services.administration.service import Administration

# A table of more is read by programs, which say --limit 0.
DEFAULT_LIMIT: Final = 1_000
# Secrets would stand in the list of processes; lists and objects are no options.  --file takes them all.
_ONLY_IN_FILES: Final = frozenset(
    {"token", "token_sha256", "secret_sha256", "apps", "scripts", "metadata", "healthcheck", "seeded", "rights"}
)
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024


class ResourceGroup(click.Group):
    """A group that knows how it was called before it was one: `tailnet admin user NAME`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = ", ".join(self.list_commands(ctx))
            ctx.fail(f"no such command {args[0]!r}: there are {known}; `{ctx.command_path} show {args[0]}` shows one")
        return super().resolve_command(ctx, args)


def make_group(resource: Resource) -> ResourceGroup:
    """The commands of one kind."""
    article = "an" if resource.name[0] in "aeio" else "a"
    group = ResourceGroup(resource.name, help=f"Create, list, show, change and delete {resource.plural}.")
    group.add_command(_create(resource, article))
    group.add_command(_list(resource))
    group.add_command(_show(resource, article))
    group.add_command(_update(resource, article))
    group.add_command(_delete(resource, article))
    return group


def _create(resource: Resource, article: str) -> click.Command:
    @click.option("--id", "ident", metavar="ID", help="an id of one's own; a new one by default")
    @store_options
    def create(
        ident: str | None, store: str | None, config: str | None, as_json: bool, file: str | None, **given: Any
    ) -> None:
        with administration(store, config) as work:
            body = resource.read(_body(work, resource, given, file))
            if ident is None:
                operation = operations.create(resource, body)
            else:
                operation = operations.put(resource, resource.parse_id(ident), body, operations.NEW)
            say(work.do(local_actor(), operation).body, as_json)

    return _command(resource, create, "create", f"Make {article} {resource.name}.")


def _list(resource: Resource) -> click.Command:
    @click.option("--limit", type=click.IntRange(0), default=DEFAULT_LIMIT, help="at most so many; 0: all")
    @store_options
    def several(limit: int, store: str | None, config: str | None, as_json: bool, **filters: str | None) -> None:
        with administration(store, config) as work:
            given = {name: _filter(work, name, text) for name, text in filters.items() if text is not None}
            found = every(work, resource, parse_filters(resource, given), limit)
            if as_json:
                for each in found:
                    say_json(each)
            else:
                print_table(console(), resource.columns, list(found))

    for name in reversed(list(resource.kind.filters)):
        flag = f"--{_flag(name)}"
        words = f"a part of the {resource.label}" if name == "q" else f"those whose {name.replace('_', ' ')} is this"
        several = click.option(flag, name, metavar="TEXT", help=words)(several)
    return click.command("list", help=f"List {resource.plural}, by id; --json: one object a line.")(several)


def _show(resource: Resource, article: str) -> click.Command:
    @click.argument("which", metavar=_metavar(resource))
    @store_options
    def show(which: str, store: str | None, config: str | None, as_json: bool) -> None:
        with administration(store, config) as work:
            say(work.get(resource, find_id(work, resource, which))[0], as_json)

    return click.command("show", help=f"Show {article} {resource.name}.")(show)


def _update(resource: Resource, article: str) -> click.Command:
    @click.argument("which", metavar=_metavar(resource))
    @store_options
    def update(
        which: str, store: str | None, config: str | None, as_json: bool, file: str | None, **given: Any
    ) -> None:
        with administration(store, config) as work:
            body = resource.read(_body(work, resource, given, file), partial=True)
            operation = operations.patch(resource, find_id(work, resource, which), body)
            say(work.do(local_actor(), operation).body, as_json)

    return _command(resource, update, "update", f"Change {article} {resource.name}: what is not given stays.")


def _delete(resource: Resource, article: str) -> click.Command:
    @click.argument("which", metavar=_metavar(resource))
    @click.option("--yes", is_flag=True, help="without a question")
    @store_options
    def delete(which: str, yes: bool, store: str | None, config: str | None, as_json: bool) -> None:
        with administration(store, config) as work:
            ident = find_id(work, resource, which)
            shown = work.get(resource, ident)[0]
            beside = work.dependents(resource, ident)
            with_them = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in beside.items())
            named = shown.get(resource.label) or shown["id"]
            confirm(f"delete {resource.name} {named}" + (f" with {with_them}" if with_them else ""), yes=yes)
            work.do(local_actor(), operations.delete(resource, ident))
        say({"deleted": shown["id"], **beside}, as_json)

    return click.command("delete", help=f"Delete {article} {resource.name} with all that belongs to it.")(delete)


def say(body: Mapping[str, Any] | None, as_json: bool) -> None:
    """What came of a command."""
    if as_json:
        say_json(body or {})
    else:
        print_fields(console(), body or {}, with_secrets=True)


def _command(resource: Resource, function: Callable[..., None], name: str, help_text: str) -> click.Command:
    """A command with an option for each field."""
    given = resource.given.model_fields
    for field, each in reversed(given.items()):
        if field not in _ONLY_IN_FILES:
            function = _option(field, each.annotation, each.description or "")(function)
    function = click.option("--file", type=FILE, help="fields as JSON, - is stdin; options win over it")(function)
    if any(field in _ONLY_IN_FILES for field in given):
        others = ", ".join(field for field in given if field in _ONLY_IN_FILES)
        help_text += f"\n\nFields that only a --file can have: {others}."
    return click.command(name, help=help_text)(function)


def _option(field: str, annotation: Any, description: str) -> Callable[..., Any]:
    flag = f"--{_flag(field)}"
    if annotation is bool:
        return click.option(f"{flag}/--no-{_flag(field)}", field, default=None, help=description)
    if get_origin(annotation) is Literal:
        return click.option(flag, field, type=click.Choice(get_args(annotation)), help=description)
    if field == "environment":
        return click.option(flag, field, metavar="NAME=VALUE", multiple=True, help="a variable; again for each")
    is_number = annotation is int or int in get_args(annotation)
    return click.option(flag, field, type=int if is_number else str, metavar="TEXT", help=description)


def _body(work: Administration, resource: Resource, given: Mapping[str, Any], file: str | None) -> str:
    """Fields as JSON: those of the file, and over them the options."""
    fields = dict(_read(file)) if file is not None else {}
    for name, value in given.items():
        if value is None or value == ():
            continue
        if name in REFERENCES:
            value = find_reference(work, name, value)
        elif name == "environment":
            value = dict(_variable(each) for each in value)
        elif name == "expires_at":
            value = None if value == "never" else moment(value)
        fields[name] = value
    return json.dumps(fields)


def _read(file: str) -> Mapping[str, Any]:
    try:
        if file == "-":
            text = sys.stdin.buffer.read(_MAX_FILE_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                text = opened.read(_MAX_FILE_BYTES + 1)
        found = json.loads(text)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be read: {error_text(error)}") from None
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{file}: is no JSON: {error_text(error)}") from None
    if len(text) > _MAX_FILE_BYTES or not isinstance(found, dict):
        raise click.UsageError(f"{file}: wants one JSON object of at most {_MAX_FILE_BYTES:,} bytes")
    return found


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"wants NAME=VALUE, got {name!r:.80}")
    return name, value


def _filter(work: Administration, name: str, text: str) -> str:
    if name in REFERENCES:
        return find_reference(work, name, text)
    return moment(text) if name == "expires_before" else text


def _flag(field: str) -> str:
    name = field.removesuffix("_id") if field in REFERENCES else field
    return {"q": "match"}.get(name, name.replace("_", "-"))


def _metavar(resource: Resource) -> str:
    return "ID" if not resource.label or resource.label not in resource.kind.filters else "NAME|ID"


GROUPS: Final = {name: make_group(each) for name, each in RESOURCES.items() if name != "grant"}
