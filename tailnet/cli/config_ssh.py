"""`tailnet config-ssh`: has OpenSSH reach agents as `tailnet.AGENT` (layer L4).

It owns the lines between its two marks in the user's ssh_config, and no other.  Next hop: ssh.py.
"""

from pathlib import Path
from typing import Final

import click

from derp.cli_run import FILE
from derp.text import error_text
from tailnet.cli.login import replace_file
from tailnet.cli.output import console
from tailnet.cli.ssh import HOST_PREFIX, SETTINGS, proxy_command
from tailnet.errors import ConfigError

BEGIN: Final = "# >>> tailnet config-ssh: written by a program; change nothing up to the other mark"
END: Final = "# <<< tailnet config-ssh"
# A user's ssh_config; what is longer is none.
_MAX_BYTES: Final = 4 * 1024 * 1024


@click.command("config-ssh")
@click.option("--file", "file", type=FILE, metavar="FILE", help="the ssh_config; ~/.ssh/config if not given")
@click.option("--dry-run", is_flag=True, help="show the lines and write nothing")
@click.option("--remove", is_flag=True, help="take the lines out again")
def config_ssh(file: str | None, dry_run: bool, remove: bool) -> None:
    """Have ssh, scp, sftp, rsync and editors reach every agent as tailnet.AGENT, such as tailnet.dev.main.

    They come with what `tailnet login` stored, or with CODER_URL and CODER_SESSION_TOKEN.
    """
    if dry_run:
        for line in section():
            console().print(line)
        return
    path = (Path(file) if file else Path.home() / ".ssh" / "config").resolve()
    try:
        before = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        if len(before) > _MAX_BYTES:
            raise ConfigError(f"{path}: is longer than any ssh_config")
        after = replaced(before, [] if remove else section())
        if after != before:
            replace_file(path, after, path.stat().st_mode & 0o777 if path.exists() else 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be changed: {error_text(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error_text(error)}") from None
    if remove:
        console().print(f"{path} knows nothing of agents" + (" any more" if after != before else ""))
    else:
        console().print(f"{path}: `ssh {HOST_PREFIX}AGENT` reaches agents; `tailnet agents` lists them")


def section() -> list[str]:
    """The lines for ssh_config."""
    settings = {"ProxyCommand": f"{proxy_command('--host-prefix', HOST_PREFIX, '--')} %n", **SETTINGS}
    return [BEGIN, f"Host {HOST_PREFIX}*", *(f"    {name} {value}" for name, value in settings.items()), END]


def replaced(text: str, lines: list[str]) -> str:
    """An ssh_config with these lines between the marks, at its end if it has none.  ValueError: one mark is missing."""
    found = text.splitlines()
    if (found.count(BEGIN), found.count(END)) not in ((0, 0), (1, 1)) or (
        BEGIN in found and found.index(BEGIN) > found.index(END)
    ):
        raise ValueError(f"the lines {BEGIN!r} and {END!r} do not stand there once each: take out what is left of them")
    if BEGIN in found:
        found[found.index(BEGIN) : found.index(END) + 1] = lines
    elif lines:
        found += [*([""] if found and found[-1] else []), *lines]
    else:
        return text
    return "".join(f"{line}\n" for line in found)
