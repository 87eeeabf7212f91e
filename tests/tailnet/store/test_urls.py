"""What a store's URL may be, what is wrong with others, and that no password is ever shown."""

import pytest

from tailnet.errors import StoreError
from tailnet.store.urls import parse_store_url, store_path


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("tailnet.db", "not a URL"),
        ("alice:hunter2@db", "not a URL"),
        ("postgresql://alice:hunter2@db:port/x", "not a URL"),
        ("mysql://alice:hunter2@db/tailnet", "mysql is not supported"),
        ("postgresql+asyncpg://alice:hunter2@db/tailnet", "asyncpg is not supported"),
        ("postgresql://alice:hunter2@db", "names no database"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=ro&uri=true", "no parameters"),
    ],
)
def test_urls_that_name_no_store(url: str, wanted: str) -> None:
    with pytest.raises(StoreError, match=wanted) as caught:
        parse_store_url(url)
    assert "hunter2" not in str(caught.value)


def test_the_file_of_a_url() -> None:
    assert str(store_path(parse_store_url("sqlite:////srv/tailnet.db"))) == "/srv/tailnet.db"
    assert str(store_path(parse_store_url("sqlite+pysqlite:///tailnet.db"))) == "tailnet.db"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_ways_to_write_postgresql(scheme: str) -> None:
    url = parse_store_url(f"{scheme}://alice@db:5433/tailnet?sslmode=require")
    assert url.render_as_string() == "postgresql+psycopg://alice@db:5433/tailnet?sslmode=require"
