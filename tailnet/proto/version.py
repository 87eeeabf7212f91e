"""API versions: what a dial may ask for, and the refusal that genuine clients can read.  Layer L1.

A peer dials with `?version=2.N`; the server serves every minor up to its own, so one implementation fits all.
Next hop: the door that reads the query answers a VersionRefused as HTTP 400 with its message and validation.
"""

from typing import Final, NamedTuple

from tailnet.errors import TailnetError


class Version(NamedTuple):
    """`major.minor`; compares as versions do."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


# The newest minor whose fields proto/ lists.  Announcing less would turn new agents away with 400.
CURRENT: Final = Version(2, 11)
# What a dial without `version` means on /me/rpc and /tailnet.
OLDEST: Final = Version(2, 0)

# Longest text worth quoting back: a version has some five characters.
_MAX_QUOTED: Final = 32


class VersionRefused(TailnetError):
    """The version cannot be served.  Answer 400 with `message` and one validation of `field` and `detail`."""

    message: Final = "Unknown or unsupported API version"
    field: Final = "version"

    def __init__(self, detail: str) -> None:
        super().__init__(f"{self.message}: {detail}")
        self.detail = detail


def parse_version(text: str) -> Version:
    """Read `major.minor`.  Raises VersionRefused."""
    parts = text.split(".")
    # isdecimal alone would let other scripts' digits in; five digits are more than any version will have.
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) <= 5 for part in parts):
        raise VersionRefused(f"invalid version string: {text[:_MAX_QUOTED]}")
    return Version(int(parts[0]), int(parts[1]))


def check_version(text: str | None, *, current: Version = CURRENT) -> Version:
    """The version to serve for the query value `text` (None: the parameter is absent).  Raises VersionRefused."""
    version = OLDEST if text is None else parse_version(text)
    if version.major > current.major:
        raise VersionRefused(f"server is at version {current}, behind requested major version {version}")
    if version.major < current.major:
        raise VersionRefused(f"version {version} is no longer supported")
    if version.minor > current.minor:
        raise VersionRefused(f"server is at version {current}, behind requested minor version {version}")
    return version
