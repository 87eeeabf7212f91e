"""How both commands write their log: stdlib logging, text for people, JSON lines for machines (layer L2).

`set_up_logging` is called once, by the command line; libraries and embedders only use `logging.getLogger("derp...")`.
Lines go to stderr: stdout is for what a program may want to read.  One line when a connection opens, one when it
closes, none per packet.  A thread writes them, so that a log nobody reads stops no traffic: lines are dropped then, and
counted.  Secrets never get here; should one, derp/text.py masks it, and what a terminal would obey is written out.
"""

import json
import logging
import math
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO, Any, Final

from derp.text import error_text, fit_lines_to_show, fit_to_show

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# What waits for a reader.  A mass reconnect of 5,000 clients a second says 5,000 lines of some 200 bytes: a reader may
# stop for 4 s then, as journald does when it rotates.
MAX_HELD_BYTES: Final = 4 * 1024 * 1024
# The thread lets lines pile up for so long, and writes them at once: it wakes a hundred times a second then, and not
# 5,000 times, each of which takes the interpreter from the reactor.
_GATHER_SECONDS: Final = 0.01
# At the end of the process, for what still waits.  A reader that is alive needs a moment; one that is not gets no more.
_LAST_SECONDS: Final = 1.0
# The last lines, kept in memory for whoever cannot ask journald: an hour of a quiet server, a minute of a storm.
MAX_RECENT_LINES: Final = 2_000
MAX_RECENT_CHARS: Final = 512 * 1024
# Fields that every line has; a line's own may not hide them.
_OWN_FIELDS: Final = frozenset({"time", "level", "logger", "message", "exception"})


def set_up_logging(form: str, level: str, stream: IO[str] | None = None) -> None:
    """Send all log lines of this process to `stream` (stderr if None).

    `form`: "text", "json", or "auto": text if the stream is a terminal.  `level`: debug, info, warning or error.
    """
    stream = sys.stderr if stream is None else stream
    if form == "auto":
        form = "text" if stream.isatty() else "json"
    formatter = _JsonLine() if form == "json" else _TextLine()
    logging.basicConfig(handlers=[_Lines(stream, formatter)], level=_LEVELS[level], force=True)
    logging.captureWarnings(True)
    # No line of ours shows which thread said it and where: not to find that out spares two of its 11 us, in the way
    # that the library's handbook gives.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    # httpx says one line per request at INFO: with --verify-client-url that is a second line per connection.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.unraisablehook = _log_unraisable
    if form == "json":
        sys.excepthook = _log_crash


def set_level(level: str) -> None:
    """Say more or less from now on: debug, info, warning or error."""
    logging.getLogger().setLevel(_LEVELS[level])


def fields(**values: object) -> Mapping[str, object]:
    """For `extra=` of a log call: what the line says, for machines.  JSON lines carry it beside the message.

    Words that mean the same everywhere: `event`, `client` (its number), `key` (32 bytes, shown as nodekey:...),
    `address`, `reason`, and counts and seconds under their units.
    """
    return {"fields": values}


class Rarely:
    """For lines that strangers can cause: one of each kind once in `seconds`, then with how many more there were."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said: dict[str, tuple[float, int]] = {}  # when, and how many since; kinds are few, and of our making

    def held_back(self, kind: str, now: float) -> int | None:
        """None: hold this line back.  Else say it, and that so many of its kind were held back since the last."""
        said_at, held = self._said.get(kind, (-math.inf, 0))
        if now - said_at < self._seconds:
            self._said[kind] = (said_at, held + 1)
            return None
        self._said[kind] = (now, 0)
        return held


def and_more(count: int) -> str:
    """The end of such a line."""
    return f" ({count:,} more since the last such line)" if count else ""


def dropped_line_count() -> int:
    """Log lines of this process that nobody read in time."""
    return sum(handler.writer.dropped_count for handler in logging.getLogger().handlers if isinstance(handler, _Lines))


def recent_lines() -> list[str]:
    """The last lines of this process as they were written, the oldest first: without secrets, like all of them."""
    return [
        line for handler in logging.getLogger().handlers if isinstance(handler, _Lines) for line in handler.recent()
    ]


def flush_log(seconds: float = _LAST_SECONDS) -> bool:
    """Wait until every line is written; False if that took longer than this."""
    lines = [handler for handler in logging.getLogger().handlers if isinstance(handler, _Lines)]
    return all(handler.writer.flush(seconds) for handler in lines)


def tell_fatal(program: str, text: str) -> bool:
    """Say in the log why `program` ends: a line of JSON, or `program: text` line by line.  False: there is no log yet,
    so the caller has to say it."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, _Lines):
            continue
        if isinstance(handler.formatter, _JsonLine):
            logging.getLogger(program).critical("%s", text, extra=fields(event="fatal"))
        else:
            handler.writer.add("".join(f"{program}: {fit_to_show(line)}\n" for line in text.splitlines()).encode())
        handler.writer.flush(_LAST_SECONDS)
        return True
    return False


class LineWriter:
    """A thread that writes lines, and the bounded queue before it.  `add` never waits for a reader."""

    def __init__(self, write: Callable[[bytes], None], tell_lost: Callable[[int], bytes]) -> None:
        """`write` may block for as long as it likes.  `tell_lost` makes the line that says how many were dropped."""
        self._write = write
        self._tell_lost = tell_lost
        self.dropped_count = 0
        self._told_count = 0
        self._lines: list[bytes] = []
        self._held_bytes = 0  # of lines in the queue, and of those that are being written
        self._is_hurried = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, line: bytes) -> None:
        """Queue a line with its end; drop it when too much waits."""
        with self._changed:
            if self._held_bytes + len(line) > MAX_HELD_BYTES:
                self.dropped_count += 1
                return
            self._held_bytes += len(line)
            self._lines.append(line)
            if len(self._lines) == 1:
                self._changed.notify_all()
            if self._thread is None:
                # A daemon: who ends need not wait for a reader that never comes.
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def flush(self, seconds: float) -> bool:
        """Wait until every line is written; False if that took longer than this."""
        self._is_hurried.set()
        try:
            with self._changed:
                return self._changed.wait_for(lambda: not self._held_bytes, seconds)
        finally:
            self._is_hurried.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
            self._is_hurried.wait(_GATHER_SECONDS)
            with self._changed:
                lines, self._lines = self._lines, []
            is_written = True
            try:
                self._write(b"".join(lines))
                lost = self.dropped_count - self._told_count
                if lost:
                    self._write(self._tell_lost(lost))
                    self._told_count += lost
            except (OSError, ValueError):  # nobody is at the other end any more, or the stream is closed
                is_written = False
            with self._changed:
                self.dropped_count += 0 if is_written else len(lines)
                self._held_bytes -= sum(map(len, lines))
                self._changed.notify_all()


class _Lines(logging.Handler):
    """Formats a line where it is said, and leaves it to the thread."""

    def __init__(self, stream: IO[str], formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(_writer_to(stream), self._lost_line)
        self._recent: deque[str] = deque()
        self._recent_chars = 0

    def recent(self) -> list[str]:
        """The last lines."""
        assert self.lock is not None
        with self.lock:
            return list(self._recent)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            # A line that does not fit its own arguments is a defect of ours, and no reason to fail.
            text = "a log line cannot be shown: %r with %d arguments"
            what = str(record.msg), len(record.args or ())
            line = self.format(_record(logging.ERROR, text, *what, exc_info=sys.exc_info()))
        self._remember(line)
        self.writer.add(f"{line}\n".encode("utf-8", "backslashreplace"))

    def _remember(self, line: str) -> None:
        # Whoever calls holds the handler's lock.
        self._recent.append(line)
        self._recent_chars += len(line)
        while len(self._recent) > MAX_RECENT_LINES or self._recent_chars > MAX_RECENT_CHARS:
            self._recent_chars -= len(self._recent.popleft())

    def flush(self) -> None:
        """Called at the end of the process, by the library."""
        self.writer.flush(_LAST_SECONDS)

    def _lost_line(self, count: int) -> bytes:
        text = "! %d log lines were dropped: nobody read them fast enough"
        return f"{self.format(_record(logging.WARNING, text, count))}\n".encode()


def _record(level: int, text: str, *args: object, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("derp.log", level, __file__, 0, text, args, exc_info)


def _writer_to(stream: IO[str]) -> Callable[[bytes], None]:
    """What writes bytes to a stream, past its buffers if it is a file of the system."""
    try:
        fd = stream.fileno()
    except (OSError, AttributeError):

        def write_text(data: bytes) -> None:
            stream.write(data.decode())
            stream.flush()

        return write_text

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:  # somebody who shares the file made it so
                select.select((), (fd,), ())

    return write


class _TextLine(logging.Formatter):
    """`12:34:56.789 W derp.server text`: time of day, level's first letter, who, what."""

    def format(self, record: logging.LogRecord) -> str:
        moment = _second(_local_second, int(record.created))
        # On one line, so that nobody's name or path can pose as a line of ours.
        message = fit_to_show(record.getMessage().rstrip())
        line = f"{moment}.{int(record.msecs):03d} {record.levelname[0]} {record.name} {message}"
        if record.exc_info:
            line += "\n" + fit_lines_to_show(self.formatException(record.exc_info))
        return line


class _JsonLine(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, the line's own fields (see `fields`), and
    exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        moment = _second(_utc_second, int(record.created))
        entry: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": fit_lines_to_show(record.getMessage()),
        }
        for name, value in getattr(record, "fields", {}).items():
            assert name not in _OWN_FIELDS, f"a log line has a {name} already"
            entry[name] = _shown(value)
        if record.exc_info:
            entry["exception"] = fit_lines_to_show(self.formatException(record.exc_info))
        return _encode(entry)


# Two lines for each client: the encoder is made once, and a second is spelled once.
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode
_local_second: Final[dict[int, str]] = {}
_utc_second: Final[dict[int, str]] = {}


def _second(spelled: dict[int, str], second: int) -> str:
    text = spelled.get(second)
    if text is None:
        spelled.clear()
        if spelled is _utc_second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        else:
            text = time.strftime("%H:%M:%S", time.localtime(second))
        spelled[second] = text
    return text


# What needs no look for secrets: words without a digit, and addresses, which are shorter than any key.
_HARMLESS: Final = re.compile(r"[A-Za-z_.]{0,45}|[0-9a-f.:]{1,45}")


def _shown(value: object) -> object:
    """A field as JSON has it: bytes are a public key."""
    if isinstance(value, bytes):
        return f"nodekey:{value.hex()}"
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 3)
    text = str(value)
    return text if _HARMLESS.fullmatch(text) else fit_to_show(text)


def _log_crash(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What nobody caught, in the form of the other lines: who reads JSON would not see a traceback as one event."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    text = "a defect ended this program; please report this: %s"
    more = fields(event="fatal")
    logging.getLogger("derp").critical(text, error_text(error), exc_info=(kind, error, trace), extra=more)
    flush_log()


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
