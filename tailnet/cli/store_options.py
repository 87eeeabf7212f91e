"""The options of commands that work on a store (layer L4)."""

from collections.abc import Callable

import click

from derp.cli_run import FILE
from tailnet.config import load_config


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds --store and --config, which `store_url` understands, and --json as `as_json`."""
    options = (
        click.option("--store", metavar="URL", help="the store; without it the settings' one, as for `tailnet serve`"),
        click.option("--config", type=FILE, metavar="FILE", help="settings as TOML; TAILNET_CONFIG names it too"),
        click.option("--json", "as_json", is_flag=True, help="say the outcome as one JSON object"),
    )
    for option in reversed(options):
        command = option(command)
    return command


def store_url(store: str | None, config: str | None) -> str:
    """The store that was meant.  Raises ConfigError."""
    return store or load_config(config_file=config).store
