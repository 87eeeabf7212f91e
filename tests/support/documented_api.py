"""Condenses five published documents of the Agents API into tests/vectors/api_documents.json, to compare with ours.

    python -m tests.support.documented_api FOLDER

FOLDER has the documents, in the three forms in which they are found: Markdown, the Markdown of a client generator,
and a web page as text.  Of each operation the table keeps parameters, properties (as paths: `apps[].health`,
`latency.*.preferred`) with their types in JSON, statuses and values of enums.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "api_documents.json"
# Values of examples that stand for any value of their kind.
_ANY_VALUE: Final = re.compile(r"string|[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT.*|agent has lost connection")

Operations = dict[str, dict[str, Any]]


def flatten(value: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Each property of an example, with its value if that is one of an enum, and its type."""
    if value in ([], {}):
        yield place, "", "object" if value == {} else "array"
    elif isinstance(value, list):
        for each in value[:1]:
            yield from flatten(each, f"{place}[]")
    elif isinstance(value, dict):
        for name, each in value.items():
            if name == "property2":
                continue
            inner = "*" if name == "property1" else name
            yield from flatten(each, f"{place}.{inner}" if place else inner)
    else:
        is_enum = isinstance(value, str) and not _ANY_VALUE.fullmatch(value)
        yield place, value if is_enum else "", type_of(value)


def type_of(value: Any) -> str:
    """What JSON Schema calls it."""
    if isinstance(value, bool):
        return "boolean"
    return "integer" if isinstance(value, int) else "number" if isinstance(value, float) else "string"


def markdown(text: str) -> Operations:
    found: Operations = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        head = re.search(r"^`(GET|POST|PATCH|DELETE|PUT) (/\S+)`", section, re.M)
        if head is None:
            continue
        rows = re.findall(r"^\| *`([\w-]+)` *\| *(\w+) *\| *(\S+)[^|]*\| *(true|false)", section, re.M)
        bodies = {
            kind: json.loads(example)
            for kind, example in re.findall(
                r"^> (Body parameter|\d{3} Response)\s+```json\n(.*?)```", section, re.M | re.S
            )
        }
        found[f"{head[1]} {head[2]}"] = _operation(
            [f"{where} {name}" for name, where, _, _ in rows if where != "body"],
            bodies,
            re.findall(r"^\| *(\d{3}) ", section, re.M),
            [],
        )
    return found


def page(text: str) -> Operations:
    found: Operations = {}
    parts = re.split(r"^(GET|POST|PATCH|DELETE|PUT) (/\S+)$", text, flags=re.M)
    for method, path, section in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        bodies = {
            kind: json.loads(example)
            for kind, example in re.findall(r"(Body parameter|\d{3} Response)\n+([{\[].*)$", section, re.M)
        }
        rows = re.findall(r"(\w+) (path|query) (?:string|integer|boolean)\S* (?:true|false)", section)
        listed = re.search(r"Enumerated Values Property Value (.*)$", section, re.M)
        words = listed[1].split() if listed else []
        values = [f"[].{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)]
        found[f"{method} {path}"] = _operation([f"{where} {name}" for name, where in rows], bodies, [], values)
    return found


def client(text: str) -> Operations:
    found: Operations = {}
    paths = {
        name: (method, path)
        for name, method, path in re.findall(r"^\| \[\*\*(\w+)\*\*\]\S+ \| \*\*(\w+)\*\* (\S+) ", text, re.M)
    }
    for section in re.split(r"^# \*\*", text, flags=re.M)[1:]:
        method, path = paths[section.partition("**")[0]]
        rows = re.findall(r"^\| \*\*([\w\\]+)\*\* \|", section, re.M)
        names = [name.replace("\\", "") for name in rows if name != "request"]
        found[f"{method} {path}"] = _operation(
            [("path " if f"{{{name}}}" in path else "query ") + name for name in names], {}, [], []
        )
    return found


def _operation(parameters: list[str], bodies: dict[str, Any], statuses: list[str], values: list[str]) -> dict[str, Any]:
    operation: dict[str, Any] = {"parameters": sorted(parameters)}
    for kind, example in bodies.items():
        name = "body" if kind == "Body parameter" else "answer"
        flat = list(flatten(example))
        operation[name] = [place for place, _, _ in flat]
        operation[f"{name} types"] = [f"{place}={kind}" for place, _, kind in flat]
        found = [f"{place}={value}" for place, value, _ in flat if value]
        if name == "answer":
            values = [*values, *found]
        else:
            operation["body values"] = found
        if name == "answer":
            statuses = [*statuses, kind.split()[0]]
    operation["statuses"] = sorted(set(statuses))
    operation["values"] = values
    return {name: value for name, value in operation.items() if value}


def main(folder: Path) -> None:
    documents = {}
    for number, file in enumerate(sorted(folder.glob("*.txt"))):
        text = file.read_text()
        read = client if "All URIs are relative to" in text else page if "Search Query:" in text else markdown
        documents[f"document {number}"] = read(text)
    VECTORS.write_text(json.dumps(documents, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
