"""`tailnet admin`: changes of the store from outside of a server, which sees them within a second (layer L4)."""

import click

from tailnet.cli import admin_tokens
from tailnet.cli.admin_records import audit, key_group
from tailnet.cli.admin_resources import GROUPS
from tailnet.cli.admin_secrets import secrets_group
from tailnet.cli.admin_store import store_group
from tailnet.cli.admin_transfer import export, import_file
from tailnet.cli.bundle import bundle

# Its commands are added to the groups when it is imported.
assert admin_tokens


@click.group()
def admin() -> None:
    """Change what is in the store.

    The same can be done over HTTP, where a server has --admin-token-file: docs/admin.md.
    """


for _command in (*GROUPS.values(), key_group, audit, import_file, export, store_group, secrets_group, bundle):
    admin.add_command(_command)
