"""Log lines: both forms, no secrets, no noise that a stranger can make."""

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest

from derp.keys import NodePrivate, NodePublic
from derp.log import set_up_logging
from derp.text import fit_to_show

PRIVATE = NodePrivate(b"\x11" * 32)
PUBLIC = NodePublic(b"\x22" * 32)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, hook = logging.getLogger(), sys.unraisablehook
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # else force=True would close those of the test runner
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, sys.unraisablehook = handlers, hook
        root.setLevel(level)
        logging.getLogger("httpx").setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def one_line(stream: io.StringIO) -> str:
    text = stream.getvalue()
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
    assert stream.getvalue().count("\n") == shown


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_blotted_out_even_of_tracebacks(form: str) -> None:
    stream = io.StringIO()
    set_up_logging(form, "info", stream)
    mesh_key = "ab" * 32
    try:
        raise ValueError(f"bad {PRIVATE.text()}")
    except ValueError:
        logging.getLogger("derp").exception("key %s of %s is 'x%s'", mesh_key, PUBLIC, PRIVATE.text())
    text = stream.getvalue()
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
    assert stream.getvalue().replace("\n", "", 1).isprintable()
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
    assert stream.getvalue() == ""


def test_a_closed_stream_is_no_reason_to_fail_but_a_wrong_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    set_up_logging("text", "info", stream)
    stream.close()
    logging.getLogger("derp").error("to nobody")
    assert capsys.readouterr().err == ""
    set_up_logging("text", "info", io.StringIO())
    logging.getLogger("derp").error("%d", "no number")
    assert "TypeError" in capsys.readouterr().err
