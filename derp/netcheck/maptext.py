"""DERP maps as people write them: JSON with comments and trailing commas, or TOML (layer L1).

Comments are blanked, not removed, so that lines and columns in later complaints are those of the file.  TOML carries
the same names: `[Regions.900]`, `[[Regions.900.Nodes]]`.  Next hop: netcheck/lint.py, derp/map.py.
"""

import codecs
import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from derp.errors import MapFormatError
from derp.json_numbers import huge_number_in
from derp.text import error_text

# What matters of JSON here: strings (to be left alone), the two kinds of comment, a comma before a closing bracket.
_TOKEN: Final = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<open>/\*)""", re.DOTALL
)
_TRAILING_COMMA: Final = re.compile(r""""(?:[^"\\\n]|\\.)*"|(?P<comma>,)(?=\s*[}\]])""", re.DOTALL)
_NOT_BLANK: Final = re.compile(r"[^\n]")
_MAP_KEYS: Final = frozenset({"regions", "homeparams", "omitdefaultregions"})
_NODE_KEYS: Final = frozenset({"hostname", "certname", "derpport", "stunport", "stunonly", "ipv4", "ipv6"})
_REGION_KEYS: Final = frozenset({"nodes", "regioncode", "regionname"})
_WHOLE: Final = '{"Regions": {"900": {"RegionID": 900, "Nodes": [...]}}}'
# What people hand over in place of a map, and what to do about it.
_INSTEAD: Final = (
    (re.compile(r"\s*\Z"), "there is nothing in it"),
    (
        re.compile(r"\s*<"),
        "this is a web page or XML, no map: is the address right, and does one have to log in there?",
    ),
    (re.compile(r'\s*"[^"\n]*"\s*:'), "this is a piece of a JSON file, and no object with Regions"),
    (re.compile(r'\s*(?:\[\s*(?:[{"\]]|null|[0-9])|["0-9tfn-][^=\n]*\Z)'), "this is JSON, but no object with Regions"),
    (
        re.compile(r"(?:\s*#[^\n]*\n|\s*---[^\n]*\n|\s*\n)*\s*[A-Za-z]+:(?:\s|\Z)"),
        "this looks like YAML: write it as JSON or TOML, with the names of JSON (Regions, HostName, DERPPort)",
    ),
)


def read_map_text(content: bytes) -> str | dict[str, Any]:
    """Plain JSON text, or what a TOML document holds: either is what `lint` and DERPMap.parse take.

    A map in JSON begins with a brace, behind comments perhaps; no TOML document does.  Raises MapFormatError, which
    names the line, or what this is instead of a map.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MapFormatError("DERP map: is written in UTF-16: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MapFormatError(f"DERP map: byte {error.start} is not UTF-8 text") from None
    plain = plain_json(text)
    if plain.lstrip()[:1] == "{":
        return plain
    piece = _piece_of_json(plain)
    if piece:
        raise MapFormatError(f"DERP map: {piece}")
    instead = next((what for pattern, what in _INSTEAD if pattern.match(plain)), "")
    if instead:
        raise MapFormatError(f"DERP map: {instead}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and Python's own about thousands of digits
        if huge := huge_number_in(text):
            raise MapFormatError(f"DERP map: {huge}: no field takes one") from None
        raise MapFormatError(
            f"DERP map: neither JSON, which begins with a brace, nor TOML: {error_text(error)}"
        ) from None


def what_instead(document: Mapping[Any, object]) -> str:
    """What a JSON object is that holds a part of a map or has one inside, and what to do; empty: it may be a map."""
    keys = {str(key).casefold() for key in document}
    if "derpmap" in keys:
        return "the map stands inside this key, as in a policy file: give what it holds alone"
    if keys & _MAP_KEYS or not keys:
        return ""
    if keys & _REGION_KEYS:
        return f"this is one region and no map: put it under its id, as in {_WHOLE}"
    if keys & _NODE_KEYS:
        return f"this is one node and no map: put it into the Nodes of a region, as in {_WHOLE}"
    if "regionscore" in keys:
        return 'this is what HomeParams holds and no map: put it there, as in {"HomeParams": {"RegionScore": {}}}'
    if all(re.fullmatch("[0-9]+", key) for key in keys):
        return f"these are regions by their ids and no map: put them into Regions, as in {_WHOLE}"
    return ""


def _piece_of_json(text: str) -> str:
    """The same for text that was cut out of a larger file: `"derpMap": {...}`, a list of nodes."""
    stripped = text.strip().rstrip(",")
    try:
        if stripped[:1] == "[":
            first = next(iter(json.loads(stripped)), None)
            instead = what_instead(first) if isinstance(first, dict) else ""
            return instead.replace("this is one", "this is a list whose first element is one")
        if stripped[:1] == '"':
            document = json.loads(f"{{{stripped}}}")
            name = next(iter(document))
            if {str(key).casefold() for key in document} & _MAP_KEYS:
                return f'this is a piece of a map, "{name}": ..., without the braces around it'
            instead = what_instead(document)
            return f'this is a piece of a JSON file, "{name}": ...: {instead}' if instead else ""
    except (ValueError, RecursionError):
        pass
    return ""


def plain_json(text: str) -> str:
    """The same text with comments and trailing commas blanked; every character keeps its place."""

    def blank_comment(match: re.Match[str]) -> str:
        if match["string"] is not None:
            return match[0]
        if match["open"] is not None:
            line = text.count("\n", 0, match.start()) + 1
            raise MapFormatError(f"DERP map: line {line}: a comment begins here and never ends")
        return _NOT_BLANK.sub(" ", match[0])

    def blank_comma(match: re.Match[str]) -> str:
        return " " if match["comma"] is not None else match[0]

    return _TRAILING_COMMA.sub(blank_comma, _TOKEN.sub(blank_comment, text))
