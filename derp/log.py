"""How the relay writes its log: stdlib logging, text for people, JSON lines for machines (layer L2).

`set_up_logging` is called once, by the command line; libraries and embedders only use `logging.getLogger("derp...")`.
Lines go to stderr: stdout is for what a program may want to read.  One line when a connection opens, one when it
closes, none per packet.  Secrets never get here; should one, derp/text.py masks it, and what a terminal would obey is
written out.
"""

import json
import logging
import sys
import time
from typing import IO, Any, Final

from derp.text import fit_lines_to_show, fit_to_show

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up_logging(form: str, level: str, stream: IO[str] | None = None) -> None:
    """Send all log lines of this process to `stream` (stderr if None).

    `form`: "text", "json", or "auto": text if the stream is a terminal.  `level`: debug, info, warning or error.
    """
    stream = sys.stderr if stream is None else stream
    if form == "auto":
        form = "text" if stream.isatty() else "json"
    handler = _Lines(stream)
    handler.setFormatter(_JsonLine() if form == "json" else _TextLine())
    logging.basicConfig(handlers=[handler], level=_LEVELS[level], force=True)
    logging.captureWarnings(True)
    # httpx says one line per request at INFO: with --verify-client-url that is a second line per connection.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.unraisablehook = _log_unraisable


class _Lines(logging.StreamHandler[IO[str]]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
        # A closed pipe behind stderr must not print a traceback for each line; there is nobody left to tell.
        if not self.stream.closed and not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _TextLine(logging.Formatter):
    """`12:34:56.789 W derp.server text`: time of day, level's first letter, who, what."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        # On one line, so that nobody's name or path can pose as a line of ours.
        message = fit_to_show(record.getMessage().rstrip())
        line = f"{moment}.{int(record.msecs):03d} {record.levelname[0]} {record.name} {message}"
        if record.exc_info:
            line += "\n" + fit_lines_to_show(self.formatException(record.exc_info))
        return line


class _JsonLine(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": fit_lines_to_show(record.getMessage()),
        }
        if record.exc_info:
            entry["exception"] = fit_lines_to_show(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def _log_unraisable(problem: Any) -> None:
    """What Python could not raise.  A stranger must not be able to fill the log by it."""
    # The ssl module decodes the name in a ClientHello as ASCII and complains here about any other byte; the handshake
    # fails as it should.  Anyone can send that a thousand times a second.
    if problem.exc_type is UnicodeDecodeError and isinstance(problem.object, bytes):
        return
    logging.getLogger("derp").error(
        "%s %r",
        problem.err_msg or "ignored an exception in",
        problem.object,
        exc_info=(problem.exc_type, problem.exc_value, problem.exc_traceback),
    )
