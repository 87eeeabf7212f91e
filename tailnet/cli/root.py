"""The group of commands, and how each of them fails (layer L4).

Results go to stdout, one JSON object a line with --json; the log and errors go to stderr.  Exit status: 0 good, 1 it
failed, 2 it was asked wrongly.  Next hop: serve.py, admin.py.
"""

import sys
from importlib.metadata import version
from typing import Final, NoReturn

import click

from derp.errors import DerpError
from derp.log import tell_fatal
from derp.text import fit_to_show
from tailnet.cli.admin import admin
from tailnet.cli.demo import demo
from tailnet.cli.serve import serve

_CLOSED_PIPE_STATUS: Final = 141  # what shells show for a program whose reader went away
_INTERRUPTED_STATUS: Final = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("tailnet-derp"), "--version", message="%(version)s")
def cli() -> None:
    """A tailnet's coordinator with its embedded DERP relay."""


cli.add_command(serve)
cli.add_command(admin)
cli.add_command(demo)


def run(args: list[str] | None = None) -> None:
    """Run the command line, sys.argv if `args` is None, and leave with its status."""
    try:
        # Commands return nothing; a number is what click was told to leave with.
        status = cli.main(args, prog_name="tailnet", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED_STATUS)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DerpError as error:
        _fail(error)
    except BaseExceptionGroup as group:
        _fail(_only_cause(group))
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered must not be flushed into the void.
        sys.stderr.close()
        sys.exit(_CLOSED_PIPE_STATUS)
    if status:
        sys.exit(status)


def _only_cause(group: BaseExceptionGroup[BaseException]) -> DerpError:
    """The one error that tasks of a server stopped for.  Anything else is a fault of ours and keeps its traceback."""
    errors, rest = group.split(DerpError)
    if rest is not None or errors is None:
        raise group
    cause: BaseException = errors
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    assert isinstance(cause, DerpError)
    return cause


def _fail(error: DerpError) -> NoReturn:
    # Not through rich: a file name with brackets in it is no markup, and long lines stay whole for grep.
    if not tell_fatal("tailnet", str(error)):
        for line in str(error).splitlines():
            click.echo(f"tailnet: {fit_to_show(line)}", err=True)
    sys.exit(1)
