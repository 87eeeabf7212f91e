"""Where settings come from: TOML file, environment, flags, each stronger than the one before (layer L2).

`read_sources` reads them by a program's Table into a `Given`: values, each with the place where it stood.  Whatever is
wrong is one ConfigError of the form `place: key: reason`.  Variables that others put under our prefix stop nothing.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

from derp.config.setting import Setting, Table
from derp.errors import ConfigError
from derp.json_numbers import huge_number_in
from derp.text import error_text

# Settings and keys are a few hundred bytes; a path that points to a device or a log must not fill our memory.
MAX_FILE_BYTES: Final = 1024 * 1024
# What Kubernetes puts into every container of a namespace for each Service in it, called after the Service; where that
# begins with our prefix (derp, derp-stun, ...), it looks like settings.  Docker's links between containers are alike.
_LINK_NAME: Final = re.compile(
    r"([A-Z0-9_]*_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
    r"|ENV_[A-Za-z0-9_]+)"
)
# derp-stun's is DERP_STUN_PORT, which is a setting's name: only the value tells.
_LINK_PORT_NAME: Final = re.compile(r"([A-Z0-9_]*_)?PORT")
_LINK_PORT: Final = re.compile(r"(tcp|udp|sctp)://.+:\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Value:
    value: Any
    place: str
    source: str


class Given:
    """What was given, parsed, by setting name, and where.  `notices`: what the operator should know of it."""

    def __init__(self, table: Table, environ: Mapping[str, str]) -> None:
        self.table = table
        self.environ = environ
        self.notices: list[str] = []
        self._values: dict[str, _Value] = {}
        self._prefix = ""

    def under(self, prefix: str) -> "Given":
        """The settings of an embedded table, by their own names."""
        inner = Given(self.table, self.environ)
        inner.notices, inner._values, inner._prefix = self.notices, self._values, prefix
        return inner

    def give(self, setting: Setting, raw: object, place: str, source: str) -> None:
        """Take a value from one of the sources; a later source wins, the same one may not say it twice."""
        before = self._values.get(setting.name)
        if before is not None and before.source == source:
            raise ConfigError(f"{place}: the same setting as {before.place}: leave one of them out")
        try:
            self._values[setting.name] = _Value(setting.parse(raw), place, source)
        except ValueError as error:
            raise ConfigError(f"{place}: {error_text(error)}") from None

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        name = self._prefix + name
        return self._values[name].value if name in self._values else default

    def flag(self, name: str) -> str:
        """What to call a setting in an advice."""
        return self.table.by_name[self._prefix + name].flag

    def place(self, name: str) -> str:
        """Where a setting was given, or how its flag is called if it was not."""
        name = self._prefix + name
        return self._values[name].place if name in self._values else f"flags: {self.table.by_name[name].shown_flag}"

    def fail(self, name: str, reason: str) -> NoReturn:
        raise ConfigError(f"{self.place(name)}: {reason}")

    def values(self) -> dict[str, Any]:
        """Everything, by setting name."""
        return {name: given.value for name, given in self._values.items()}

    def attributes(self, inside: str = "") -> dict[str, Any]:
        """What was given for the attributes that are one setting each: of the configuration, or of a value in it."""
        start = f"{inside}." if inside else ""
        return {
            row.path.removeprefix(start): self._values[row.name].value
            for row in self.table
            if row.name in self._values
            and not row.part_of
            and row.path.startswith(start)
            and "." not in row.path.removeprefix(start)
        }


def read_sources(
    table: Table, flags: Mapping[str, str], environ: Mapping[str, str], config_file: str | None = None
) -> Given:
    """Read all sources.

    `flags`: text by setting name, as it stood on the command line.  `config_file`: the TOML file; if None, the one that
    the environment names.  Raises ConfigError.
    """
    given = Given(table, environ)
    config_file = config_file or environ.get(table.config_variable) or None
    if config_file is not None:
        _read_toml(Path(config_file), given)
    others = list(_read_environment(environ, given))
    for name, text in flags.items():
        row = table.by_name[name]
        given.give(row, text, f"flags: {row.shown_flag}", "flags")
    _judge_others(others, given)
    return given


def read_file(path: Path, what: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A small file.  Raises ConfigError that names it and what it should have been."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what}: {error_text(error)}") from None
    if len(content) > max_bytes:
        raise ConfigError(f"{path}: is no {what}: it has more than {max_bytes:,} bytes")
    return content


def _read_toml(path: Path, given: Given) -> None:
    content = read_file(path, "settings")
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, and Python's own about thousands of digits
        if huge := huge_number_in(content.decode(errors="replace")):
            raise ConfigError(f"{path}: {huge}: no setting takes one") from None
        raise ConfigError(f"{path}: is not TOML: {error_text(error)}") from None
    table = given.table
    for shown, key, value in _keys(document, table):
        setting = table.by_key.get(key)
        if setting is None:
            raise ConfigError(f"{path}: {shown!r:.80}: there is no such setting{_advice(key, table)}")
        given.give(setting, value, f"{path}: {shown}", "file")


def _keys(document: Mapping[str, Any], table: Table) -> Iterator[tuple[str, str, Any]]:
    """Key as it stands, name of the setting, value.  A table's keys are settings that begin with its name."""
    for key, value in document.items():
        if isinstance(value, dict) and key not in table.by_key and any(n.startswith(f"{key}_") for n in table.by_key):
            for inner, one in value.items():
                yield f"{key}.{inner}", f"{key}_{inner}", one
        else:
            yield key, key, value


def _read_environment(environ: Mapping[str, str], given: Given) -> Iterator[str]:
    """Take what is ours; yield what looks like it and is nobody's."""
    table = given.table
    for variable, text in environ.items():
        if not variable.startswith(table.prefix) or variable == table.config_variable:
            continue
        if _is_link(variable.removeprefix(table.prefix), text):
            continue
        setting = table.by_variable.get(variable)
        if setting is None:
            yield variable
        # Compose files pass ${NAME:-} on as an empty variable when the operator set nothing.
        elif text:
            given.give(setting, text, f"environment: {variable}", "environment")


def _is_link(name: str, text: str) -> bool:
    if _LINK_NAME.fullmatch(name) or (name == "NAME" and text.startswith("/")):
        return True
    return bool(_LINK_PORT_NAME.fullmatch(name) and _LINK_PORT.fullmatch(text))


def _judge_others(variables: Iterable[str], given: Given) -> None:
    """Variables of no setting.  What images of others call a setting is an error only if the setting was not given:
    then something that was meant would be lost.  Whoever says both, for a way back, is told which one counts."""
    table = given.table
    for variable in variables:
        setting = table.elsewhere.get(variable.removeprefix(table.prefix).lower())
        if setting is None or setting.name not in given:
            advice = _advice(variable.removeprefix(table.prefix).lower(), table, table.prefix)
            raise ConfigError(f"environment: {variable}: there is no such setting{advice}")
        given.notices.append(f"environment: {variable}: is not read here: {given.place(setting.name)} is what counts")


def _advice(key: str, table: Table, prefix: str = "") -> str:
    setting = table.elsewhere.get(key)
    near = [setting.name] if setting is not None else get_close_matches(key, table.by_key, 1)
    if not near:
        return ""
    name = f"{prefix}{near[0].upper()}" if prefix else near[0]
    return f": it is called {name} here" if setting is not None else f": did you mean {name}?"
