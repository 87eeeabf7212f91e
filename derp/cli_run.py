"""How both commands run and end: exit statuses, Ctrl-C, an output that takes nothing, versions, completion (layer L4).

`run` is the last line of `derp` and of `tailnet`.  Results go to stdout; the log and errors go to stderr.
"""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable
from errno import EPIPE
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from derp.config.setting import Setting
from derp.errors import ConfigError, DerpError, KeyFormatError, ListenError, MapFormatError
from derp.log import tell_fatal
from derp.text import error_text, fit_to_show

GOOD: Final = 0
FAILED: Final = 1
ASKED_WRONGLY: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells show it
READER_GONE: Final = 141  # 128 + SIGPIPE
# One table for both commands: --help shows it, and the README.
STATUSES: Final = {
    GOOD: "good",
    FAILED: "it failed: cannot serve, cannot reach or open something, what was asked about is not well, or the output "
    "takes nothing (a full disk)",
    ASKED_WRONGLY: "it was asked wrongly: a flag, a setting, or a file that makes no sense",
    INTERRUPTED: "Ctrl-C",
    READER_GONE: "whoever read the output has closed it",
}
_WRONGLY: Final = (ConfigError, KeyFormatError, MapFormatError)

# A file for shells to complete; whether it is there is for the command to say, in its own words.
FILE: Final = click.Path(readable=False)


class OutputError(DerpError):
    """Standard output took nothing more.  No OSError: code that talks to the network or to files takes those for its
    own."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error_text(error)}")
        self.status = READER_GONE if error.errno == EPIPE else FAILED


class _Stdout(io.FileIO):
    """Descriptor 1."""

    def write(self, content: Any) -> int | None:  # type: ignore[override]  # a buffer, as FileIO takes them
        try:
            return super().write(content)
        except OSError as error:
            raise OutputError(error) from None


def run(command: click.Command, name: str, args: list[str] | None = None, *, wrongly: tuple[type, ...] = ()) -> None:
    """Run a command line, sys.argv if `args` is None; leave with its status, or return if that is good.

    `wrongly`: further errors that mean that it was asked wrongly.
    """
    _open_stdout()
    try:
        status = _status(command, name, args)
        _flush_stdout()
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except OutputError as error:
        _say(name, error)
        status = error.status
    except ListenError as error:  # the setting may be right: another program may be in the way
        _say(name, error)
        status = FAILED
    except DerpError as error:
        _say(name, error)
        status = ASKED_WRONGLY if isinstance(error, (*_WRONGLY, *wrongly)) else FAILED
    _leave(status)


def _status(command: click.Command, name: str, args: list[str] | None) -> int:
    try:
        # Commands return nothing; a number is what click was told to leave with.
        return command.main(args, prog_name=name, standalone_mode=False) or GOOD
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else GOOD
    except BaseExceptionGroup as group:
        raise _only_cause(group) from None


def _open_stdout() -> None:
    """Whatever has to be said can be: what an encoding does not have is written out, as Python does it."""
    stdout = sys.__stdout__
    if stdout is None or stdout is not sys.stdout:
        return  # closed, or a test's
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        encoding=stdout.encoding,
        errors="backslashreplace",
        line_buffering=stdout.line_buffering,
        write_through=stdout.write_through,
    )


def _flush_stdout() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _only_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that tasks stopped for.  Anything else is a fault of ours and keeps its traceback."""
    meant, rest = group.split((DerpError, KeyboardInterrupt, click.ClickException))
    if rest is not None or meant is None:
        return group
    cause: BaseException = meant.subgroup(KeyboardInterrupt) or meant
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


def _say(name: str, error: DerpError) -> None:
    if tell_fatal(name, str(error)):
        return
    # Not through rich: a file name with brackets in it is no markup, and long lines stay whole for grep.
    for line in str(error).splitlines():
        click.secho(f"{name}: {fit_to_show(line)}", err=True, fg="red")


def _leave(status: int) -> None:
    try:
        _flush_stdout()
    except OutputError:
        # It has been said, or it is of no interest any more; the interpreter would try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if status:
        sys.exit(status)


def keep_stdout_from_others() -> bool:
    """Make a file that is about to hold a secret readable to its owner only; False if others can read it still."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return True  # closed, or a test's
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return True  # a terminal, a pipe: whoever reads it was meant to
    if os.fstat(descriptor).st_uid == os.geteuid():
        with contextlib.suppress(OSError):  # a file system without such rights
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~0o077)
    return not os.fstat(descriptor).st_mode & 0o077


def statuses() -> str:
    """The table of exit statuses for --help."""
    return "Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in STATUSES.items()) + "."


def version_option(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--version`, which says all that matters in a report of a fault."""

    def show(context: click.Context, parameter: click.Parameter, is_given: bool) -> None:
        if not is_given or context.resilient_parsing:
            return
        # Imported here: they are of no use to a command that runs.
        import platform
        import ssl
        from importlib.metadata import version

        parts = (f"Python {platform.python_version()}", ssl.OPENSSL_VERSION, f"trio {version('trio')}")
        click.echo(f"tailnet-derp {version('tailnet-derp')} ({', '.join(parts)})")
        context.exit()

    return click.option(
        *flags,
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="of this program, Python, OpenSSL and trio",
    )


def completer(setting: Setting) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """What a shell may complete as a setting's value."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if setting.metavar.startswith(("FILE", "DIR", "PATH")):
            return [CompletionItem(incomplete, type="dir" if setting.metavar.startswith("DIR") else "file")]
        return [CompletionItem(word) for word in setting.words if word.startswith(incomplete)]

    return complete
