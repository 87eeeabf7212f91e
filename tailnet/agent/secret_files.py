"""Secrets of a manifest that are files: nobody else can read them.  Layer L3."""

import logging
import os
from collections.abc import Iterable

from derp.text import error_text, fit_to_show
from tailnet.agent.context import Context
from tailnet.agent.manifest import Secret

_log = logging.getLogger("tailnet.agent")


def write_secrets(secrets: Iterable[Secret], context: Context) -> None:
    """What cannot be written is said in the log."""
    for secret in secrets:
        try:
            _write(context.expand(secret.path), secret.value)
        except (OSError, ValueError) as error:
            shown = fit_to_show(secret.path[:200])
            _log.warning("the secret for %s cannot be written: %s", shown, error_text(error))


def _write(path: str, value: bytes) -> None:
    """Whole or not at all: a program that reads it meanwhile has the old one."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    new = f"{path}.{os.getpid()}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(value)
        os.replace(new, path)
    except OSError:
        os.unlink(new)
        raise
