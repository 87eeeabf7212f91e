"""`tailnet admin key` and `tailnet admin audit` (layer L4): keys of this installation, and who changed what."""

import click

from tailnet.cli.admin_resources import say
from tailnet.cli.admin_work import administration, confirm, local_actor
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options
from tailnet.cli.tables import print_table
from tailnet.services.administration import operations
from tailnet.services.administration.filters import parse_audit_filters
from tailnet.services.administration.service import MAX_PAGE


@click.group("key")
def key_group() -> None:
    """Keys that this installation signs and proves itself with; their secrets are never shown."""


@key_group.command("list")
@store_options
def list_keys(store: str | None, config: str | None, as_json: bool) -> None:
    """List keys, of each purpose the newest first, which signs; the older ones verify."""
    with administration(store, config) as work:
        found = work.list_keys()
    if as_json:
        for each in found:
            say_json(each)
    else:
        print_table(console(), ("purpose", "id", "state", "created_at"), found)


@key_group.command("show")
@click.argument("key_id", metavar="ID")
@store_options
def show_key(key_id: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Show a key: what it is for, whether it signs or only verifies, and since when."""
    with administration(store, config) as work:
        found = next((each for each in work.list_keys() if each["id"] == key_id), None)
        if found is None:
            raise click.ClickException(f"there is no key {key_id[:80]!r} in {work.store.shown}")
    say(found, as_json)


@key_group.command("rotate")
@click.argument("purpose")
@store_options
def rotate_key(purpose: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Make a new key of PURPOSE ("resume token"), which signs in 20 minutes, when all servers know it.

    Keys rotate by themselves each month.  Those of before verify until what they signed has ended; `revoke` ends that,
    and where the one that signs is revoked, the new one takes its place at once.
    """
    with administration(store, config) as work:
        say(work.do(local_actor(), operations.rotate_key(purpose)).body, as_json)


@key_group.command("revoke")
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="without a question")
@store_options
def revoke_key(key_id: str, yes: bool, store: str | None, config: str | None, as_json: bool) -> None:
    """Delete a key that is not the only one: what it signed is worth nothing from now on."""
    with administration(store, config) as work:
        confirm(f"revoke key {key_id}", yes=yes)
        work.do(local_actor(), operations.revoke_key(key_id))
    say({"revoked": key_id}, as_json)


@click.command()
@click.option("--kind", metavar="TEXT", help="changes of this kind of thing: user, token, agent ...")
@click.option("--target", metavar="ID", help="of the thing with this id")
@click.option("--actor", metavar="TEXT", help="by whom: a token's name, or USER@HOST")
@click.option("--action", metavar="TEXT", help="create, update, delete, rotate, revoke, import")
@click.option("--since", metavar="TIME", help="from this moment or day on")
@click.option("--until", metavar="TIME", help="before it")
@click.option("--limit", type=click.IntRange(1), default=50, help="at most so many, the newest")
@store_options
def audit(limit: int, store: str | None, config: str | None, as_json: bool, **filters: str | None) -> None:
    """Who changed what, the newest first; --json has what it was before and after."""
    asked = parse_audit_filters({name: text for name, text in filters.items() if text is not None})
    rows: list[dict[str, object]] = []
    with administration(store, config) as work:
        before = None
        while len(rows) < limit:
            page = work.audit(asked, before, min(limit - len(rows), MAX_PAGE))
            rows += page.items
            if not page.last:
                break
            before = int(page.last)
    if as_json:
        for each in rows:
            say_json(each)
        return
    told = [{**each, "who": each["actor"], "changed": each["after"] or each["before"]} for each in rows]
    print_table(console(), ("at", "who", "action", "kind", "target", "changed"), told)
