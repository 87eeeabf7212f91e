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
from tailnet.netstack.limits import KeepAliveTimes
from tailnet.node.engine import Engine
from tailnet.proto.generated.agent_pb2 import Manifest

# What systemd tells the agent itself, and nobody whom the agent starts.
_NOT_INHERITED: Final = re.compile(
    r"NOTIFY_SOCKET|LISTEN_\w+|WATCHDOG_\w+|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_\w+|MAINPID|CREDENTIALS_DIRECTORY|"
    r"CODER_AGENT_TOKEN_FILE"
)
_REFERENCE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_SHELL: Final = "/bin/sh"

# A client that was cut off or killed says no goodbye: 252 s after its last word its connection ends.  A client that
# lives and is silent costs two packets each 72 s, and for every second question a handshake, as keys live 120 s.
CLIENT_KEEP_ALIVE: Final = KeepAliveTimes(idle=72.0, interval=30.0, probes=6)
# Of SSH: a notebook that slept goes on with its sessions.  They stay as long as a lost peer does: 15 minutes.
SSH_KEEP_ALIVE: Final = KeepAliveTimes(idle=72.0, interval=69.0, probes=12)


@dataclass(slots=True, eq=False)
class Context:
    """Of one agent."""

    nursery: trio.Nursery
    """For what outlives a connection: a terminal, a process in the background."""
    url: str
    token: str = field(repr=False)
    wanted_directory: str = ""
    """The manifest's, expanded; it may come into being only by a script."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The manifest's; `$NAME` in them is replaced by what the agent itself has there."""
    secret_variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The manifest's secrets, as they are."""
    shell: str = field(default_factory=lambda: login_shell())
    counters: Counters = field(default_factory=Counters)
    engine: Engine | None = None
    """The node that serves, once it does; what is asked about the network looks there."""
    manifest: Manifest | None = field(default=None, repr=False)
    """As the coordinator sent it last."""
    allow_agent_forwarding: bool = False
    is_file_transfer_allowed: bool = True
    motd_path: str = ""
    """A file to show at the beginning of a shell; "" for none."""
    banners: tuple[str, ...] = ()
    """What the deployment announces, to be shown there too."""
    scripts_directory: str | None = None
    """For what scripts leave; gone when the agent ends."""

    @property
    def directory(self) -> str:
        """Where sessions begin: the manifest's if it is there, else the home directory."""
        return self.wanted_directory if os.path.isdir(self.wanted_directory) else home_directory()

    @property
    def bin_directory(self) -> str:
        """Of programs that scripts install for sessions; the last of PATH.  "" for none."""
        return os.path.join(self.scripts_directory, "bin") if self.scripts_directory else ""

    def environment(self) -> dict[str, str]:
        """Of every session and script."""
        own = {name: value for name, value in os.environ.items() if not _NOT_INHERITED.fullmatch(name)}
        made = {
            **own,
            "USER": user_name(),
            "HOME": home_directory(),
            "SHELL": self.shell,
            **{name: _expanded(value, own) for name, value in self.variables.items()},
            **self.secret_variables,
            "CODER": "true",
            "CODER_AGENT_URL": self.url,
            "CODER_AGENT_TOKEN": self.token,
        }
        made["PATH"] = ":".join(filter(None, (made.get("PATH", os.defpath), self.bin_directory)))
        return made

    def expand(self, path: str) -> str:
        """A path of the manifest: `~`, names of variables, and what is relative to the home directory."""
        if not path:
            return ""
        home = home_directory()
        path = _expanded(path, {**os.environ, "HOME": home})
        if path == "~" or path.startswith("~/"):
            path = home + path[1:]
        return os.path.normpath(os.path.join(home, path))


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
