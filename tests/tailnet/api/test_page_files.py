"""Scripts and styles of pages: their addresses change with them, they are in the wheel, and vendored ones are as others
released them."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from tailnet.api.page_files import address, router
from tests.support.api_world import World

API = Path(__file__).parents[3] / "tailnet" / "api"
FILES = [*API.glob("*.js"), *API.glob("*.css"), *(API / "vendored").glob("*.js"), *(API / "vendored").glob("*.css")]
OURS = [each for each in FILES if each.parent == API and each.suffix == ".js"]


def read(file: Path) -> bytes:
    return file.read_bytes()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
async def test_each_is_served_and_its_address_names_what_it_is(world: World, file: Path) -> None:
    content = read(file)
    digest = hashlib.sha256(content).hexdigest()
    assert address(f"/{file.name}") == f"/{file.name}?v={digest[:16]}"
    async with world.client() as client:
        response = await client.get(address(f"/{file.name}"))
    assert response.content == content
    kind = "text/javascript" if file.suffix == ".js" else "text/css"
    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
    assert "immutable" in response.headers["cache-control"]


def test_all_are_packed() -> None:
    project = tomllib.loads((API.parents[1] / "pyproject.toml").read_text())
    kept = project["tool"]["setuptools"]["package-data"]["tailnet"]
    packed = {file for each in kept for file in API.parent.glob(each)}
    assert packed >= {*FILES, *(API / "vendored").iterdir()}
    assert len(router.routes) == len(FILES)


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_ours_make_no_code_of_text(file: Path) -> None:
    script = file.read_text()
    assert not [word for word in ("eval(", "Function(", 'setTimeout("', "document.write") if word in script]


def test_vendored_files_are_as_they_were_released() -> None:
    table = re.findall(
        r"^\| (\S+\.(?:js|css)) \|.*\| ([0-9a-f]{64}) \|", (API / "vendored/README.md").read_text(), re.M
    )
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (API / "vendored").iterdir()
        if file.suffix in (".js", ".css")
    }
    assert dict(table) == found
