"""The log as the commands set it up, for tests that look at it; pytest's own handlers come back afterwards."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from derp.log import set_up_logging

_FACTS = ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")


@contextmanager
def own_log(form: str = "text", level: str = "info") -> Iterator[io.StringIO]:
    """What is logged meanwhile."""
    root, hook, crash = logging.getLogger(), sys.unraisablehook, sys.excepthook
    handlers, before = root.handlers[:], root.level
    found = {name: getattr(logging, name) for name in _FACTS}
    root.handlers = []  # else those of the test runner would be closed
    stream = io.StringIO()
    try:
        set_up_logging(form, level, stream)
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers, sys.unraisablehook, sys.excepthook = handlers, hook, crash
        root.setLevel(before)
        for name, value in found.items():
            setattr(logging, name, value)
        logging.getLogger("httpx").setLevel(logging.NOTSET)
