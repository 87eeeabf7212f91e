"""The API's description as it is kept in the repository: docs/openapi.json.

    python -m tests.support.openapi_document

writes it anew (`make openapi`).
"""

import json
from pathlib import Path
from typing import Any, Final, cast

from fastapi import FastAPI

from tailnet.api.app import create_app
from tailnet.api.guards import Services

KEPT: Final = Path(__file__).parents[2] / "docs" / "openapi.json"


def make_app() -> FastAPI:
    """The app, to look at: it has no services, so it answers nothing."""
    return create_app(cast(Services, None))


def document() -> dict[str, Any]:
    return make_app().openapi()


def as_kept(described: dict[str, Any]) -> str:
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    KEPT.write_text(as_kept(document()))
