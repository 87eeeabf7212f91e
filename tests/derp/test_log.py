"""Log lines: both forms, no secrets, no noise that a stranger can make."""

import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from derp import log
from derp.keys import NodePrivate, NodePublic
from derp.log import (
    LineWriter,
    Rarely,
    and_more,
    dropped_line_count,
    fields,
    flush_log,
    recent_lines,
    set_up_logging,
    tell_fatal,
)
from derp.text import fit_to_show

PRIVATE = NodePrivate(b"\x11" * 32)
PUBLIC = NodePublic(b"\x22" * 32)
PATIENCE_SECONDS = 60.0  # a hang guard


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, hook, crash = logging.getLogger(), sys.unraisablehook, sys.excepthook
    facts = ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")
    found = {name: getattr(logging, name) for name in facts}
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # else force=True would close those of the test runner
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, sys.unraisablehook, sys.excepthook = handlers, hook, crash
        root.setLevel(level)
        for name, value in found.items():
            setattr(logging, name, value)
        logging.getLogger("httpx").setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO) -> str:
    """Everything that was said."""
    assert flush_log(PATIENCE_SECONDS)
    return stream.getvalue()


def one_line(stream: io.StringIO) -> str:
    text = written(stream)
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text[:-1]


def test_text_on_a_terminal() -> None:
    stream = Terminal()
    set_up_logging("auto", "info", stream)
    logging.getLogger("derp.server").warning("client %d is slow", 3)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} W derp\.server client 3 is slow", one_line(stream))


def test_json_elsewhere() -> None:
    stream = io.StringIO()
    set_up_logging("auto", "info", stream)
    logging.getLogger("derp.server").info("two\nlines and a ü")
    entry = json.loads(one_line(stream))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry == {"level": "info", "logger": "derp.server", "message": "two\nlines and a ü"}


@pytest.mark.parametrize(("form", "level", "shown"), [("text", "warning", False), ("text", "debug", True)])
def test_levels(form: str, level: str, shown: bool) -> None:
    stream = io.StringIO()
    set_up_logging(form, level, stream)
    logging.getLogger("derp").info("x")
    logging.getLogger("httpx").info("x")
    assert written(stream).count("\n") == shown


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_blotted_out_even_of_tracebacks(form: str) -> None:
    stream = io.StringIO()
    set_up_logging(form, "info", stream)
    mesh_key = "ab" * 32
    try:
        raise ValueError(f"bad {PRIVATE.text()}")
    except ValueError:
        logging.getLogger("derp").exception("key %s of %s is 'x%s'", mesh_key, PUBLIC, PRIVATE.text())
    text = written(stream)
    assert PRIVATE.raw.hex() not in text
    assert mesh_key not in text
    assert str(PUBLIC) in text
    assert "ValueError: bad privkey:<secret>" in text


def test_pins_and_public_keys_stay_readable() -> None:
    for text in (f"sha256-raw:{'ab' * 32}", str(PUBLIC), "ab" * 31, "z" + "ab" * 32):
        assert fit_to_show(text) == text


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_cannot_pose_as_a_line_or_move_the_cursor(form: str) -> None:
    stream = io.StringIO()
    set_up_logging(form, "info", stream)
    logging.getLogger("derp").info("app %s", "x\n12:00:00.000 E derp.server all is lost\x1b[2J\x9b1A\u202e")
    assert written(stream).replace("\n", "", 1).isprintable()
    assert stream.getvalue().count("\n") == 1


def test_warnings_become_lines() -> None:
    stream = io.StringIO()
    set_up_logging("json", "info", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert "old thing" in json.loads(one_line(stream))["message"]


class Stumbling:
    def __del__(self) -> None:
        raise RuntimeError("in a finaliser")


def test_what_cannot_be_raised_is_one_line_with_its_cause() -> None:
    stream = io.StringIO()
    set_up_logging("json", "info", stream)
    Stumbling()
    entry = json.loads(one_line(stream))
    assert entry["level"] == "error"
    assert "RuntimeError: in a finaliser" in entry["exception"]


def test_a_stranger_cannot_fill_the_log_by_names_that_are_no_text() -> None:
    stream = io.StringIO()
    set_up_logging("text", "debug", stream)
    problem = type("Problem", (), {"exc_type": UnicodeDecodeError, "object": b"\xff", "err_msg": None})
    sys.unraisablehook(problem)  # type: ignore[arg-type]  # has what the hook reads
    assert written(stream) == ""


def test_a_closed_stream_is_no_reason_to_fail_and_its_lines_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    set_up_logging("text", "info", stream)
    stream.close()
    logging.getLogger("derp").error("to nobody")
    assert flush_log(PATIENCE_SECONDS)
    assert (capsys.readouterr().err, dropped_line_count()) == ("", 1)


def test_a_line_that_does_not_fit_its_arguments_is_told() -> None:
    stream = io.StringIO()
    set_up_logging("text", "info", stream)
    logging.getLogger("derp").error("%d", "no number")
    text = written(stream)
    assert "a log line cannot be shown" in text
    assert "'%d' with 1 arguments" in text
    assert "TypeError" in text


# --- fields


def test_json_lines_carry_fields_beside_the_message() -> None:
    stream = io.StringIO()
    set_up_logging("json", "info", stream)
    more = fields(
        event="disconnected", client=3, key=PUBLIC.raw, address="::1", seconds=1.23456, is_home=True, why=None
    )
    logging.getLogger("derp").info("x client 3", extra=more)
    entry = json.loads(one_line(stream))
    del entry["time"]
    assert entry == {
        "level": "info",
        "logger": "derp",
        "message": "x client 3",
        "event": "disconnected",
        "client": 3,
        "key": str(PUBLIC),
        "address": "::1",
        "seconds": 1.235,
        "is_home": True,
        "why": None,
    }


def test_what_strangers_say_is_fit_to_show_in_a_field_too() -> None:
    stream = io.StringIO()
    set_up_logging("json", "info", stream)
    logging.getLogger("derp").info("x", extra=fields(reason=f"\x1b[2J {PRIVATE.text()}"))
    assert json.loads(one_line(stream))["reason"] == "\\x1b[2J privkey:<secret>"


def test_a_field_does_not_pose_as_what_every_line_has() -> None:
    stream = io.StringIO()
    set_up_logging("json", "info", stream)
    logging.getLogger("derp").info("the message", extra=fields(message="another"))
    assert "a log line has a message already" in json.loads(one_line(stream))["exception"]


def test_fields_are_for_machines() -> None:
    stream = io.StringIO()
    set_up_logging("text", "info", stream)
    logging.getLogger("derp").info("for people", extra=fields(event="x"))
    assert one_line(stream).endswith(" for people")


def test_a_line_that_strangers_cause_comes_once_in_a_while_with_the_number_of_the_others() -> None:
    rarely = Rarely(60.0)
    assert [rarely.held_back("a", now) for now in (0.0, 1.0, 59.0)] == [0, None, None]
    assert rarely.held_back("b", 1.0) == 0
    assert [rarely.held_back("a", now) for now in (60.0, 61.0, 200.0)] == [2, None, 1]
    assert (and_more(0), and_more(1234)) == ("", " (1,234 more since the last such line)")


# --- the last line


def test_the_reason_of_the_end_has_the_form_of_the_log() -> None:
    for form in ("text", "json"):
        stream = io.StringIO()
        set_up_logging(form, "info", stream)
        assert tell_fatal("derp", "port 443 is taken:\nby another program")
        if form == "text":
            assert stream.getvalue() == "derp: port 443 is taken:\nderp: by another program\n"
        else:
            entry = json.loads(stream.getvalue())
            assert (entry["level"], entry["event"]) == ("critical", "fatal")
            assert entry["message"] == "port 443 is taken:\nby another program"


def test_a_crash_is_one_line_of_json_and_a_traceback_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("json", "text"):
        stream = io.StringIO()
        set_up_logging(form, "info", stream)
        try:
            raise ZeroDivisionError("a defect")
        except ZeroDivisionError as error:
            sys.excepthook(type(error), error, error.__traceback__)
        if form == "json":
            entry = json.loads(one_line(stream))
            assert (entry["level"], entry["event"]) == ("critical", "fatal")
            assert "ZeroDivisionError: a defect" in entry["exception"]
            sys.excepthook = sys.__excepthook__
        else:
            assert (written(stream), "ZeroDivisionError" in capsys.readouterr().err) == ("", True)


def test_without_a_log_the_caller_says_it() -> None:
    assert not tell_fatal("derp", "anything")


# --- a log that nobody reads


class Pipe:
    """Where lines go; it takes nothing while `is_full`."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.data = b""

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE_SECONDS)
        self.data += data


def test_lines_that_nobody_reads_are_dropped_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_HELD_BYTES", 100)
    pipe = Pipe()
    writer = LineWriter(pipe.write, lambda count: b"%d lost\n" % count)
    writer.add(b"first\n")
    assert pipe.entered.wait(PATIENCE_SECONDS)
    for number in range(100):
        writer.add(b"%08d\n" % number)  # which returns, though nobody reads
    assert not writer.flush(0.0)
    kept = (100 - len(b"first\n")) // 9
    assert writer.dropped_count == 100 - kept
    pipe.opened.set()
    assert writer.flush(PATIENCE_SECONDS)
    lines = pipe.data.splitlines()
    assert lines[0] == b"first"
    assert sorted(lines[1:]) == sorted([*(b"%08d" % number for number in range(kept)), b"%d lost" % (100 - kept)])
    writer.add(b"again\n")
    assert writer.flush(PATIENCE_SECONDS)
    assert pipe.data.endswith(b"again\n"), "a loss is told once"


def test_many_threads_lose_nothing() -> None:
    pipe = Pipe()
    pipe.opened.set()
    writer = LineWriter(pipe.write, lambda count: b"")

    def say(name: int) -> None:
        for number in range(500):
            writer.add(b"%d %d\n" % (name, number))

    threads = [threading.Thread(target=say, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(PATIENCE_SECONDS)
    lines = pipe.data.splitlines()
    assert len(lines) == 4000
    for name in range(8):
        mine = [int(line.split()[1]) for line in lines if line.startswith(b"%d " % name)]
        assert mine == list(range(500)), "in the order in which they were said"


# --- the last lines


def test_the_last_lines_are_kept_without_secrets_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_logging("json", "info", io.StringIO())
    logger = logging.getLogger("derp")
    logger.info("Authorization: Bearer abcdefgh1234")
    logger.debug("nobody asked for this one")
    [line] = recent_lines()
    assert json.loads(line)["message"] == "Authorization: Bearer <secret>"
    monkeypatch.setattr(log, "MAX_RECENT_LINES", 3)
    for number in range(10):
        logger.info("%d", number)
    assert [json.loads(line)["message"] for line in recent_lines()] == ["7", "8", "9"]
    monkeypatch.setattr(log, "MAX_RECENT_CHARS", 2 * len(recent_lines()[0]))
    logger.info("last")
    assert len(recent_lines()) <= 2
    assert json.loads(recent_lines()[-1])["message"] == "last"
