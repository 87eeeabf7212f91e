"""The settings as they may be shown to anybody (layer L2): by name, without what is secret.

A value is shown only if it is of a kind that holds no secret; texts go through derp/text.py, and one whose setting's
name speaks of a secret is never shown.  Used by api/support.py and by `tailnet admin bundle`.
"""

import re
from collections.abc import Collection
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from derp.config.setting import Setting
from derp.text import MASK, fit_to_show
from tailnet.config.coordinator import CoordinatorConfig
from tailnet.config.settings import SETTINGS

_SECRET_NAME: Final = re.compile(r"secret|token|passw|psk|private|credential|(?:^|_)key$")
# Longer lists (keys that are allowed) are counted.
_MAX_SHOWN: Final = 50


def shown_settings(config: CoordinatorConfig) -> dict[str, object]:
    """Every setting by name, as it is in effect; one that has no value of its own only where it was given."""
    return {row.name: _shown(row, _value(config, row)) for row in SETTINGS}


def _value(config: CoordinatorConfig, row: Setting) -> object:
    value: object = config
    if row.part_of:
        return config.given.get(row.name)
    for name in row.path.split("."):
        value = getattr(value, name, None)
    return value


def _shown(row: Setting, value: object) -> object:
    # The path of a file says nothing; what stands in it is not here.
    if isinstance(value, str) and value and _SECRET_NAME.search(row.name):
        return MASK
    return _of_kind(value)


def _of_kind(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return fit_to_show(value)
        case Path() | IPv4Network() | IPv6Network():
            return fit_to_show(str(value))
        case Enum():
            return value.name.lower()
        case bytes():
            return MASK
        case Collection() if all(not isinstance(each, bytes) for each in value) and len(value) <= _MAX_SHOWN:
            return [_of_kind(each) for each in value]
        case Collection():
            return f"{len(value)} values"
        case _:
            return "set"
