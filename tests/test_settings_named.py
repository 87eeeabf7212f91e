"""Whatever a message calls a setting or a flag exists: nobody is sent to look for `trusted_networks`."""

import ast
import re
from collections.abc import Iterator

import click
import pytest

from derp.cli import cli as derp
from derp.config.settings import SETTINGS
from tailnet.cli.root import cli as tailnet
from tailnet.config import SETTINGS as COORDINATOR_SETTINGS
from tests.support.command import inner_commands
from tests.test_house import modules

# What looks like a setting in a message and is something else: of whom.
NOT_OURS = {
    "access_token": "a word of OAuth",
    **dict.fromkeys(
        ("bytes_per_second", "packets_per_second", "bytes_per_day", "bytes_per_month", "used_up"),
        "a key of the file of --limits",
    ),
    "background_color": "a key of a banner",
    "client_id": "a key of a provider",
    "client_secret": "a key of a provider",
    "client_secret_file": "a key of a provider",
    "changed_at": "a field of a report",
    "coder_session_token": "a cookie",
    "preferred_derp": "a field of a node",
    "ready_for_handshake": "a message of the protocol",
    "refresh_token": "a word of OAuth",
    **dict.fromkeys(
        ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sentinel_username", "sentinel_password"),
        "an option behind an address of Redis",
    ),
    "self_signed": "an attribute that embedders set",
    "token_url": "a key of a provider",
    "workspace_owner_id": "a field of a request",
    "proxy_pass": "nginx",
    "proxy_ssl_name": "nginx",
    "proxy_ssl_server_name": "nginx",
    "tls_server_name": "Caddy",
    "pg_hba": "a file of PostgreSQL",
    "pg_stat_activity": "a view of PostgreSQL",
    "default_transaction_read_only": "a setting of PostgreSQL",
    "receive_data": "one of our functions, in an error for programmers",
    "next_cycle": "one of our functions, in an error for programmers",
    "ssh_config": "a file of OpenSSH",
    "max_age": "a field of the control plane's answers",
    "max_bytes": "an argument, in an error for programmers",
    "no_wait": "a parameter of the API",
}
_FLAG = re.compile(r"(?<![\w./-])--[a-z][a-z0-9-]*[a-z0-9]")
_WORD = re.compile(r"(?<![\w./?&=-])[a-z]+(?:_[a-z0-9]+)+(?![\w.(/-])")


def sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text with a blank in it that is no docstring: what could be read by somebody."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        if is_text and " " in node.value.strip() and not _is_sql(node.value):  # type: ignore[attr-defined]  # is_text
            yield node.lineno, node.value  # type: ignore[attr-defined]  # is_text


def _is_sql(text: str) -> bool:
    return re.search(r"\b(SELECT|INSERT|UPDATE|DELETE|PRAGMA|SET|SHOW|CREATE|DROP) |-c \w", text) is not None


def flags_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for _, inner in inner_commands(command):
            yield from flags_of(inner)


FLAGS = {*flags_of(derp), *flags_of(tailnet), "--help"}
NAMES = {*SETTINGS.by_key, *COORDINATOR_SETTINGS.by_key, *NOT_OURS}


def wrong_names(name: str, tree: ast.Module) -> list[str]:
    if name == "derp/server/markup.py":  # variables of its style sheet look like flags
        return []
    return [
        f"{name}:{line}: there is no {word}"
        for line, text in sentences(tree)
        for word, known in [(w, FLAGS) for w in _FLAG.findall(text)] + [(w, NAMES) for w in _WORD.findall(text)]
        if word not in known
    ]


def test_settings_and_flags_that_messages_name_exist() -> None:
    assert [problem for name, tree in modules() for problem in wrong_names(name, tree)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from a network in trusted_networks, or with a token", ["trusted_networks"]),
        ("set --verify-client or --allow-keys", ["--verify-client"]),
        ("raise max_connections or lower queue_dept", ["queue_dept"]),
        ("see /debug/agent_of, tailnet/go_json.py, x.some_field and call open_ports()", []),
        ("SELECT some_column FROM t", []),
    ],
)
def test_the_check_can_fail(text: str, found: list[str]) -> None:
    tree = ast.parse(f"raise ValueError({text!r})")
    assert [problem.rpartition(" ")[2] for problem in wrong_names("x", tree)] == found


def test_what_is_not_ours_is_not_a_setting() -> None:
    assert set(NOT_OURS) & (set(SETTINGS.by_key) | set(COORDINATOR_SETTINGS.by_key)) == set()
