"""Tokens and grants from the command line (layer L4): what users, agents and workspaces have beside the common.

Added to the groups of admin_resources.py by admin.py.
"""

from typing import Final

import click

from tailnet.cli.admin_resources import GROUPS, say
from tailnet.cli.admin_work import administration, confirm, duration, every, find_id, local_actor
from tailnet.cli.output import console, say_json
from tailnet.cli.store_options import store_options
from tailnet.cli.tables import print_table
from tailnet.services.administration import operations
from tailnet.services.administration.models import GrantGiven
from tailnet.services.administration.resources import RESOURCES
from tailnet.store.rows import Right

_GRACE: Final = click.option(
    "--grace", default="0s", metavar="DURATION", help="how long the old one is good too, such as 1h; not by default"
)
_YES: Final = click.option("--yes", is_flag=True, help="without a question")
_USER, _TOKEN, _WORKSPACE = RESOURCES["user"], RESOURCES["token"], RESOURCES["workspace"]
_GRANT, _AGENT = RESOURCES["grant"], RESOURCES["agent"]


@GROUPS["token"].command("rotate")
@click.argument("token_id", metavar="ID")
@_GRACE
@store_options
def rotate_token(token_id: str, grace: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Replace a user's token by a new one like it, which is shown once."""
    with administration(store, config) as work:
        operation = operations.rotate_token(_TOKEN.parse_id(token_id), duration(grace))
        say(work.do(local_actor(), operation).body, as_json)


@GROUPS["token"].command("revoke")
@click.argument("token_id", metavar="[ID]", required=False)
@click.option("--user", metavar="NAME|ID", help="all of this user: he is signed out everywhere")
@_YES
@store_options
def revoke_token(
    token_id: str | None, user: str | None, yes: bool, store: str | None, config: str | None, as_json: bool
) -> None:
    """End a user's token, or all of them; whoever is connected with one is sent away within a second."""
    if (token_id is None) == (user is None):
        raise click.UsageError("give the ID of a token, or --user for all of a user")
    with administration(store, config) as work:
        if user is not None:
            ident = find_id(work, _USER, user)
            confirm(f"revoke every token of {user}", yes=yes)
            say(work.do(local_actor(), operations.revoke_tokens(ident)).body, as_json)
            return
        token = _TOKEN.parse_id(str(token_id))
        work.get(_TOKEN, token)
        confirm(f"revoke token {token}", yes=yes)
        work.do(local_actor(), operations.delete(_TOKEN, token, action="revoke"))
        say({"revoked": token}, as_json)


@GROUPS["agent"].command("rotate")
@click.argument("agent", metavar="NAME|ID")
@_GRACE
@store_options
def rotate_agent(agent: str, grace: str, store: str | None, config: str | None, as_json: bool) -> None:
    """Give an agent a new token, which is shown once; what was issued beside the old one ends."""
    with administration(store, config) as work:
        operation = operations.rotate_agent(find_id(work, _AGENT, agent), duration(grace))
        say(work.do(local_actor(), operation).body, as_json)


@GROUPS["agent"].command("revoke")
@click.argument("agent", metavar="NAME|ID")
@_YES
@store_options
def revoke_issued(agent: str, yes: bool, store: str | None, config: str | None, as_json: bool) -> None:
    """End the tokens that were issued beside an agent's own, which stays."""
    with administration(store, config) as work:
        ident = find_id(work, _AGENT, agent)
        confirm(f"revoke every token that was issued beside that of {agent}", yes=yes)
        say(work.do(local_actor(), operations.revoke_issued_tokens(ident)).body, as_json)


@GROUPS["workspace"].command("grant")
@click.argument("workspace", metavar="NAME|ID")
@click.argument("user", metavar="USER")
@click.argument("rights", nargs=-1, required=True, type=click.Choice([each.value for each in Right]))
@store_options
def grant(
    workspace: str, user: str, rights: tuple[str, ...], store: str | None, config: str | None, as_json: bool
) -> None:
    """Let a user do things with a workspace that is not his own: these are all his rights then.

    Reading goes with each of them.
    """
    with administration(store, config) as work:
        ids = find_id(work, _WORKSPACE, workspace), find_id(work, _USER, user)
        body = GrantGiven.model_validate({"workspace_id": ids[0], "user_id": ids[1], "rights": list(rights)})
        say(work.do(local_actor(), operations.put(_GRANT, ids, body)).body, as_json)


@GROUPS["workspace"].command("revoke-grant")
@click.argument("workspace", metavar="NAME|ID")
@click.argument("user", metavar="USER")
@_YES
@store_options
def revoke_grant(workspace: str, user: str, yes: bool, store: str | None, config: str | None, as_json: bool) -> None:
    """Take all rights away that a user was granted on a workspace; what he does there ends within a second."""
    with administration(store, config) as work:
        ids = find_id(work, _WORKSPACE, workspace), find_id(work, _USER, user)
        shown = work.get(_GRANT, ids)[0]
        confirm(f"take the rights of {user} on {workspace} away ({', '.join(shown['rights'])})", yes=yes)
        work.do(local_actor(), operations.delete(_GRANT, ids, action="revoke"))
        say({"revoked": shown["id"], "rights": shown["rights"]}, as_json)


@GROUPS["workspace"].command("grants")
@click.argument("workspace", metavar="NAME|ID")
@store_options
def grants(workspace: str, store: str | None, config: str | None, as_json: bool) -> None:
    """List who was granted what on a workspace."""
    with administration(store, config) as work:
        found = list(every(work, _GRANT, {"workspace_id": find_id(work, _WORKSPACE, workspace)}, 0))
        names = {each["user_id"]: work.get(_USER, _USER.parse_id(each["user_id"]))[0]["username"] for each in found}
    if as_json:
        for each in found:
            say_json(each)
    else:
        rows = [{"user": names[each["user_id"]], **each} for each in found]
        print_table(console(), ("user", "user_id", "rights", "updated_at"), rows)
