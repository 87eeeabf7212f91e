"""Text that came from others, made fit to be shown (layer L0).

Whatever a stranger, a map, a server, a setting or a library says goes through one of these before a log, a terminal or
a page shows it: `without_secrets` masks passwords, tokens and private keys, `printable` writes control characters out,
`error_text` never leaves the reason of an exception empty.  `fit_to_show` is the last step before an output.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

MASK: Final = "<secret>"
# Long enough for a path or a sentence, short enough that a stranger's kilobyte does not push the rest off a page.
MAX_SHOWN_CHARS: Final = 200
# An exception's text may hold a whole document that could not be read.
_MAX_REASON_CHARS: Final = 500
_LAST_SECOND: Final = 253_402_300_799.0  # of the year 9999
# Errors that wrap each other; a deeper chain is a circle.
_MAX_CAUSES: Final = 10

# A private key in its text form; and 64 bare hex digits, which is what a mesh key looks like.  Public keys and
# certificate pins have a prefix with a colon, so they stay readable.
_KEY: Final = re.compile(r"(?<=privkey:)[0-9a-fA-F]{8,}|(?<![0-9a-zA-Z:])[0-9a-fA-F]{64}(?![0-9a-zA-Z])")
_SHORTEST_KEY_CHARS: Final = 64  # without a prefix
# Every repetition below has a bound, since strangers choose the text: a search is linear in its length.
# What stands before the last @ of a URL's authority.
_USER: Final = re.compile(r"(?<=://)[^\s/?#\"'<>]{1,1024}@")
# A password with a / ? or # in it, which should have been written %2F and so on: for a parser the host is the user and
# the password begins the port.  No port has such characters, so everything up to the last @ is masked.
_UNQUOTED_USER: Final = re.compile(
    r"(?<=://)(?!\[)[^\s/?#@:\"'<>]{0,256}:(?![0-9]{0,5}(?:[/?#\s\"'<>]|$))[^\s\"'<>]{0,1024}@"
)
# user:password@host without a scheme, as in HTTPS_PROXY.  A mail address has a scheme of its own.
_BARE_USER: Final = re.compile(r"(?<![^\s\"'=(])(?!mailto:|sips?:)[^\s\"'/@:=(]{1,256}:[^\s\"'@/]{1,1024}@(?=[\w\[])")
_PARAMETER: Final = re.compile(r"(?<=[?&;#])([^\s=?&;#\"'<>]{1,100})=([^\s&;#\"'<>]+)")
_HEADER: Final = re.compile(
    r"(?i)(\b(?:(?:proxy-)?authorization|cookie|(?:\w{1,30}-){1,5}token)[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic)\s)?)\s*[^\s\"',;]+|"
    r"(\bbearer\s)\s*(?=[^\s\"',;]*[0-9])[^\s\"',;]{12,}"
)
_SECRET_NAME: Final = re.compile(
    r"(?i)token|secret|passw|passphrase|pwd|auth|signature|credential|session|jwt|(?:^|[^a-z])(?:sig|key|pw)(?:$|[^a-z])|"
    r"(?:api|access|private|account)[-_.]?key"
)
# A value that nobody would remember: 20 and more letters, digits and signs, both letters and digits among them.
_RANDOM_VALUE: Final = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_\-.~+/=%]{20,}")
# Our own public values, which pages are asked for by name.
_PUBLIC_VALUE: Final = re.compile(
    r"(?i)(?:(?:node|disco|m)key|sha256-raw)(?::|%3a).*|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[A-Z]+"
)


def without_secrets(text: str) -> str:
    """The text with every password, token and private key in it masked; URLs may stand anywhere in it.

    Masked are user and password of a URL, parameters of a query whose name or value looks like a secret, what follows
    `Authorization:` or `Bearer`, private keys, and 64 bare hex digits.  Cut a text only afterwards: half a URL does not
    look like one.
    """
    if "@" in text:
        text = _UNQUOTED_USER.sub(f"{MASK}@", text)
        text = _USER.sub(f"{MASK}@", text)
        text = _BARE_USER.sub(f"{MASK}@", text)
    if "=" in text:
        text = _PARAMETER.sub(_parameter, text)
    low = text.lower()
    if "authorization" in low or "bearer" in low or "token" in low or "cookie" in low:
        text = _HEADER.sub(_header, text)
    # Two log lines of each client come by here: what is shorter than any key is not searched for one.
    return _KEY.sub(MASK, text) if len(text) >= _SHORTEST_KEY_CHARS or "privkey:" in text else text


def printable(text: str, limit: int = MAX_SHOWN_CHARS) -> str:
    """The text on one line, at most `limit` characters: what a terminal would obey, or not show, is written out as
    Python does (`\\x1b`, `\\n`, `\\u202e`)."""
    if len(text) > limit:
        text = f"{text[:limit]}..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def fit_to_show(text: str) -> str:
    """The last step before a log, a terminal or a page: one line without secrets and control characters."""
    text = without_secrets(text)
    return printable(text, len(text))


def fit_lines_to_show(text: str) -> str:
    """The same for text that we have divided into lines: a traceback, a page."""
    if "\n" not in text:
        return fit_to_show(text)
    return "\n".join(fit_to_show(line) for line in text.split("\n"))


def bracketed(host: str) -> str:
    """A name or an address as it stands in a URL and before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def host_port(host: str, port: int) -> str:
    """A place of TCP or UDP as one text."""
    return f"{bracketed(host)}:{port}"


def utc(seconds: float) -> str:
    """A Unix time for people, as `2026-11-29 23:59:00 UTC`; one after the year 9999 is shown as its end."""
    return f"{datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A duration for people.  Two figures are enough to find the moment in a log."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def some_of(names: Sequence[str], most: int) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def without_halves(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can spell and Python can hold, but no UTF-8 can carry on.

    For each of them U+FFFD, as Go reads it.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_text(error: BaseException) -> str:
    """Why, in one line that is never empty: the words of the exception, or of the one behind it, or its kind.

    For what libraries and the system raise; transport/stream.py knows what to do about errors of sockets and TLS.
    Exceptions of our own have a sentence already.
    """
    seen: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if seen is None:
            break
        if isinstance(seen, BaseExceptionGroup):
            return "; ".join(dict.fromkeys(error_text(part) for part in seen.exceptions))
        # str() of an OSError begins with a number in brackets, that of a KeyError is the key alone.
        text = getattr(seen, "strerror", None) or ("" if isinstance(seen, KeyError) else str(seen))
        # An SSLError without words says "()".
        if isinstance(text, str) and any(map(str.isalnum, text)):
            return printable(without_secrets(" ".join(text.split())), _MAX_REASON_CHARS)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return f"{type(error).__name__}, for which no reason is given"


def _parameter(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    if _PUBLIC_VALUE.fullmatch(value):
        return found[0]
    if _SECRET_NAME.search(name) or _RANDOM_VALUE.fullmatch(value):
        return f"{name}={MASK}"
    return found[0]


def _header(found: re.Match[str]) -> str:
    return f"{found[1] or found[2]}{MASK}"
