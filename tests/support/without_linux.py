"""A program of ours where Linux is missing: `python -m tests.support.without_linux POLLER derp serve ...`.

Trio and the standard library are loaded first, since they run on Linux all the same; ours finds no epoll, no files in
memory, no /proc, and fewer socket options.  POLLER is kqueue (a stand-in) or poll.
"""

import asyncio  # noqa: F401  # what looks at `select` when it is loaded
import builtins
import importlib
import io
import os
import select
import selectors  # noqa: F401
import socket
import subprocess  # noqa: F401
import sys
import sysconfig
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import trio  # noqa: F401

ONLY_LINUX = {
    os: (
        "memfd_create",
        "eventfd",
        "pipe2",
        "pidfd_open",
        "sched_getaffinity",
        "splice",
        "copy_file_range",
        "O_TMPFILE",
    ),
    socket: (
        "TCP_USER_TIMEOUT",
        "TCP_INFO",
        "TCP_KEEPIDLE",
        "TCP_KEEPINTVL",
        "TCP_NOTSENT_LOWAT",
        "TCP_QUICKACK",
        "TCP_CORK",
        "SOCK_NONBLOCK",
        "SOCK_CLOEXEC",
        "SO_PEERCRED",
        "IPV6_RECVPKTINFO",
        "IPV6_PKTINFO",
    ),
}


def take_away(poller: str) -> None:
    """Everything that only Linux has, from here on."""
    for module, names in ONLY_LINUX.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for owner, name in ((builtins, "open"), (io, "open"), (os, "stat"), (os, "listdir"), (os, "open")):
        setattr(owner, name, _blind(getattr(owner, name)))
    sysconfig.get_config_vars()  # of this interpreter, as long as it knows its own name
    sys.platform = "freebsd14"
    if poller == "poll":
        found: Any = SimpleNamespace(poll=select.poll)
    else:
        from tests.support.kqueue import stand_in

        found = stand_in()
    from derp.transport import poller as ours

    ours.select = found  # type: ignore[attr-defined]


def _blind(look: Callable[..., Any]) -> Callable[..., Any]:
    def look_elsewhere(path: Any = ".", *arguments: Any, **named: Any) -> Any:
        if isinstance(path, str | os.PathLike) and str(path).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return look(path, *arguments, **named)

    return look_elsewhere


def main() -> None:
    poller, program, *arguments = sys.argv[1:]
    take_away(poller)
    sys.argv = [program, *arguments]
    importlib.import_module(f"{program}.cli").main()


if __name__ == "__main__":
    main()
