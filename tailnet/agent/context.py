"""What the services of an agent share: where sessions begin, their environment, what is allowed, what is counted.
Layer L3.

Made once per agent, and changed when the coordinator says something new.  Next hop: counters.py, ports.py.
"""

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from tailnet.agent.counters import Counters

# What systemd tells the agent itself, and nobody whom the agent starts.
_NOT_INHERITED: Final = re.compile(
    r"NOTIFY_SOCKET|LISTEN_\w+|WATCHDOG_\w+|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_\w+|MAINPID|CREDENTIALS_DIRECTORY|"
    r"CODER_AGENT_TOKEN_FILE"
)
_REFERENCE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_SHELL: Final = "/bin/sh"


@dataclass(slots=True, eq=False)
class Context:
    """Of one agent."""

    nursery: trio.Nursery
    """For what outlives a connection: a terminal, a process in the background."""
    url: str
    token: str = field(repr=False)
    directory: str = field(default_factory=lambda: home_directory())
    """Where sessions begin: the manifest's, else the home directory."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The manifest's; `$NAME` in them is replaced by what the agent itself has there."""
    shell: str = field(default_factory=lambda: login_shell())
    counters: Counters = field(default_factory=Counters)
    allow_agent_forwarding: bool = False
    is_file_transfer_allowed: bool = True

    def environment(self) -> dict[str, str]:
        """Of every session and script."""
        own = {name: value for name, value in os.environ.items() if not _NOT_INHERITED.fullmatch(name)}
        return {
            **own,
            "USER": user_name(),
            "HOME": home_directory(),
            "SHELL": self.shell,
            **{name: _expanded(value, own) for name, value in self.variables.items()},
            "CODER": "true",
            "CODER_AGENT_URL": self.url,
            "CODER_AGENT_TOKEN": self.token,
        }


def user_name() -> str:
    """Of the user whom the agent runs as; the number where the system has no name for it, as in containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER") or str(os.getuid())


def home_directory() -> str:
    """Of that user; the root where there is none."""
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = ""
    return home if os.path.isabs(home) else "/"


def login_shell() -> str:
    """Of that user, if it is a program; else the system's."""
    try:
        shell = pwd.getpwuid(os.getuid()).pw_shell
    except KeyError:
        shell = ""
    # A service's user has `nologin` or `false`: whoever lets an agent run as that user wants sessions of it.
    is_usable = os.access(shell, os.X_OK) and os.path.basename(shell) not in ("nologin", "false", "sync")
    return shell if is_usable else _SHELL


def _expanded(value: str, environment: Mapping[str, str]) -> str:
    """As a shell replaces names, so that a template can put something before PATH; unknown ones become empty."""
    return _REFERENCE.sub(lambda found: environment.get(found[1] or found[2], ""), value)
