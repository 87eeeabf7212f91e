"""The descriptions of both APIs as they are kept in the repository: docs/openapi.json, docs/openapi-admin.json.

    python -m tests.support.openapi_document

writes them anew (`make openapi`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from fastapi import FastAPI

from tailnet.api.administration.app import create_administration
from tailnet.api.administration.guards import AdministrationServices
from tailnet.api.app import create_app
from tailnet.api.guards import Services

KEPT: Final = Path(__file__).parents[2] / "docs" / "openapi.json"
KEPT_ADMINISTRATION: Final = KEPT.with_name("openapi-admin.json")


def make_app() -> FastAPI:
    """The app, to look at: it has no services, so it answers nothing."""
    return create_app(cast(Services, None))


def document() -> dict[str, Any]:
    return make_app().openapi()


def make_administration_app() -> FastAPI:
    """The same for administrators."""
    return create_administration(cast(AdministrationServices, None))


def administration_document() -> dict[str, Any]:
    return make_administration_app().openapi()


def references(value: Any) -> Iterator[str]:
    """Every `$ref` of a description, or of a part of it."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def as_kept(described: dict[str, Any]) -> str:
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    KEPT.write_text(as_kept(document()))
    KEPT_ADMINISTRATION.write_text(as_kept(administration_document()))
