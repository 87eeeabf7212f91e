"""The page of the API names everything that the document names, and loads nothing."""

import re
from html.parser import HTMLParser

from tailnet.api.docs import docs_html
from tests.support.api_world import World
from tests.support.openapi_document import document


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> _Page:
    parser = _Page()
    parser.feed(page)
    return parser


async def test_the_page_is_open_and_loads_nothing(world: World) -> None:
    async with world.client() as client:
        response = await client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    page = read(response.text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert {each for each in links if not each.startswith("#")} == {"/api/v2/openapi.json"}


def test_everything_is_named_and_every_link_leads_somewhere() -> None:
    described = document()
    page = read(docs_html(described))
    for path, operations in described["paths"].items():
        assert path in page.text
        for operation in operations.values():
            assert operation["summary"] in page.text
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert len(anchors) == len(described["components"]["schemas"])
    links = {attributes["href"] or "" for tag, attributes in page.tags if tag == "a"}
    assert {each[1:] for each in links if each.startswith("#")} <= anchors


def test_what_a_description_says_is_text() -> None:
    described = document()
    described["paths"]["/x"] = {"get": {"summary": "<script>1</script>", "description": "a < b", "responses": {}}}
    page = docs_html(described)
    assert "<script" not in page
    assert re.search("&lt;script&gt;1", page)
