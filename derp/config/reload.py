"""What changed between the settings of a running server and those that its sources have now (layer L2).

SIGHUP reads everything again; the server takes what its table calls reloadable, and the log names the rest, which waits
for the next start.  Called by both servers.
"""

from dataclasses import dataclass, is_dataclass, replace
from functools import reduce
from operator import attrgetter
from typing import Any, Generic, TypeVar

from derp.config.relay import ServerConfig
from derp.config.setting import Setting, Table

C = TypeVar("C", bound=ServerConfig)


@dataclass(frozen=True, slots=True)
class Changes(Generic[C]):
    """Flags of settings that differ, in the order of their table."""

    config: C  # the running one with what can be applied
    applied: tuple[str, ...]
    waiting: tuple[str, ...]
    notices: tuple[str, ...]  # what the operator should know of `after` and has not been told of `before`


def compare(table: Table, before: C, after: C) -> Changes[C]:
    """What a running server can take from `after`, and what waits for a restart.

    A setting has changed when its value has, or what stands in the file that it names.
    """
    changed = [row for row in table if _differs(row, before, after)]
    # Built attributes whose settings read the same: a file says something else.
    named = {row.path for row in changed}
    for row in table:
        if (
            row.part_of
            and row.path not in named
            and row.name in after.given
            and _value(row, before) != _value(row, after)
        ):
            changed.append(row)
            named.add(row.path)
    applied = [row for row in changed if row.reloadable]
    config = reduce(lambda config, row: _put(config, row.path, _value(row, after)), applied, before)
    return Changes(
        config=replace(
            config,
            given={**before.given, **{row.name: after.given.get(row.name) for row in applied}},
            notices=after.notices,
        ),
        applied=tuple(row.flag for row in table if row in applied),
        waiting=tuple(row.flag for row in table if row in changed and not row.reloadable),
        notices=tuple(notice for notice in after.notices if notice not in before.notices),
    )


def _differs(row: Setting, before: ServerConfig, after: ServerConfig) -> bool:
    if row.part_of:
        return bool(before.given.get(row.name) != after.given.get(row.name))
    return bool(_value(row, before) != _value(row, after))


def _value(row: Setting, config: ServerConfig) -> Any:
    return attrgetter(row.path)(config)


def _put(config: Any, path: str, value: object) -> Any:
    """A copy of the configuration with one attribute changed, of a value inside if `path` has dots."""
    name, _, rest = path.partition(".")
    assert is_dataclass(config)
    assert not isinstance(config, type)
    return replace(config, **{name: _put(getattr(config, name), rest, value) if rest else value})
