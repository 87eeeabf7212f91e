"""One row per setting, of whatever program (layer L2).

A `Setting` says what a setting is called, how its text is read, what becomes of it and whether a running server takes a
new value.  A `Table` is all of one program: sources.py reads files, environment and flags by it, reload.py compares by
it, the command lines make their options and the README its tables from it.  The rows: settings.py, tailnet/config/.
"""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Final

from derp.config import parse
from derp.config.parse import Parser
from derp.text import host_port

_BYTE_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_DURATION_UNITS: Final = ((3600, "h"), (60, "m"))


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: names, kind, meaning.  Text and values are None where a row does not say them."""

    name: str
    parse: Parser[Any]
    metavar: str
    meaning: str  # one sentence of help; {default} stands for the default
    attribute: str = ""  # the attribute of the configuration that it is, if that is called otherwise
    part_of: str = ""  # or the attribute that load.py builds from it and others
    reloadable: bool = False  # whether a running server takes a new value on SIGHUP
    alias: str = ""  # a second flag: derper's name, where it is not the long one
    from_derper: bool = False
    former: tuple[str, ...] = ()  # names it had, which are still taken
    elsewhere: tuple[str, ...] = ()  # what others call it: not taken, but whoever says it is told the name
    default: str = ""  # in words; Table reads it off the configuration's own default
    environment_prefix: str = ""  # of the program; Table says it

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means true."""
        return self.parse is parse.boolean

    @property
    def path(self) -> str:
        """Its attribute of the configuration; with dots, of a value inside."""
        return self.part_of or self.attribute or self.name

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return self.environment_prefix + self.name.upper()

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags without dashes, the long one first.  One dash and two mean the same, as in Go."""
        names = (_dashed(self.name), self.alias, *map(_dashed, self.former))
        return tuple(name for name in names if name)

    @property
    def flag(self) -> str:
        """Its long flag with the dashes."""
        return f"--{self.flags[0]}"

    @property
    def shown_flag(self) -> str:
        """How messages call it on the command line."""
        return f"{self.flag}/-{self.alias}" if self.alias else self.flag

    @property
    def help(self) -> str:
        """One sentence, with the default where it is not simply off."""
        return self.meaning.replace("{default}", self.default)

    @property
    def words(self) -> tuple[str, ...]:
        """All values there are, where they are a few words; a shell completes them."""
        return self.parse.words if isinstance(self.parse, parse.OneOf) else ()

    def embedded(self, prefix: str, inside: str, **changes: Any) -> "Setting":
        """The same setting of a program inside another one: its attribute is one of `inside`, its names of this one."""
        return replace(
            self.shared(),
            name=prefix + self.name,
            attribute="" if self.part_of else f"{inside}.{self.attribute or self.name}",
            part_of=f"{inside}.{self.part_of}" if self.part_of else "",
            elsewhere=(),
            **changes,
        )

    def shared(self, **changes: Any) -> "Setting":
        """The same setting of another program, which has not to be a drop-in."""
        return replace(self, alias="", from_derper=False, **changes)


class Table:
    """All settings of one program, in the order in which help shows them."""

    def __init__(self, prefix: str, config: type, settings: Iterable[Setting]) -> None:
        """`prefix`: of environment variables, `DERP_`.  `config`: the dataclass whose attributes they become."""
        self.prefix = prefix
        self.settings = tuple(
            replace(row, environment_prefix=prefix, default=row.default or _default(config, row)) for row in settings
        )
        self.by_name = {row.name: row for row in self.settings}
        names = [(name, row) for row in self.settings for name in (row.name, *row.former)]
        self.by_key = dict(names)
        self.by_variable = {prefix + name.upper(): row for name, row in names}
        self.elsewhere = {name: row for row in self.settings for name in row.elsewhere}
        assert len(self.by_key) == len(names), "no name means two settings"

    @property
    def config_variable(self) -> str:
        """The environment variable that names the TOML file."""
        return f"{self.prefix}CONFIG"

    def __iter__(self) -> Iterator[Setting]:
        return iter(self.settings)


def _is_plural(value: float, size: int) -> bool:
    return value >= 2 * size and value % size == 0


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _default(config: type, row: Setting) -> str:
    """The default of the attribute that a row becomes, as one would write it; empty where load.py finds it."""
    if "{default}" not in row.meaning:
        return ""
    value: Any = config
    for name in row.path.split("."):
        declared = {each.name: each for each in fields(value)}[name]
        value = declared.default_factory() if declared.default_factory is not MISSING else declared.default
        assert value is not MISSING, f"{row.name}: {name} has no default to show"
    return shown(value, row.metavar)


def shown(value: object, metavar: str) -> str:
    """A value as its setting is written."""
    if isinstance(value, bool):
        return str(value).lower()
    if metavar.startswith("ADDRESS") and isinstance(value, tuple):
        return ",".join(host_port(host, port) for host, port in value)
    if metavar == "DURATION" and isinstance(value, float):
        if 0 < value < 1:
            return f"{value * 1000:g}ms"
        return next(
            (f"{value / size:g}{unit}" for size, unit in _DURATION_UNITS if _is_plural(value, size)), f"{value:g}s"
        )
    if metavar == "BYTES" and isinstance(value, int):
        return next((f"{value // size} {unit}" for size, unit in _BYTE_UNITS if value % size == 0), str(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
