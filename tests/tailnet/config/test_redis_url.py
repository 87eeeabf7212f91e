"""Addresses of Redis as `--bus` takes them, and what is said about those that are none."""

from pathlib import Path

import pytest

from tailnet.config.redis_url import Login, RedisPlace, redis_place

HOME = ("redis.example", 6379)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("redis://redis.example", RedisPlace("", (HOME,), False)),
        ("rediss://redis.example/", RedisPlace("", (HOME,), True)),
        (
            "redis://me:a%2Fb%40c@[::1]:7000/3",
            RedisPlace("", (("::1", 7000),), False, Login("me", "a/b@c"), 3),
        ),
        ("redis://:only@redis.example", RedisPlace("", (HOME,), False, Login("", "only"))),
        (
            "redis+sentinel://a.example,10.0.0.6:7001/main/2?sentinel_username=s&sentinel_password=p%26q",
            RedisPlace(
                "sentinel",
                (("a.example", 26379), ("10.0.0.6", 7001)),
                False,
                db=2,
                service="main",
                sentinel_login=Login("s", "p&q"),
            ),
        ),
        (
            "rediss+cluster://:p@a.example:7000,b.example:7000,a.example:7000?ssl_ca_certs=/etc/ca.pem"
            "&ssl_certfile=/etc/own.pem&ssl_keyfile=/etc/own.key",
            RedisPlace(
                "cluster",
                (("a.example", 7000), ("b.example", 7000)),
                True,
                Login("", "p"),
                ca_file=Path("/etc/ca.pem"),
                certificate_file=Path("/etc/own.pem"),
                key_file=Path("/etc/own.key"),
            ),
        ),
    ],
)
def test_what_an_address_says(text: str, place: RedisPlace) -> None:
    assert redis_place(text) == place


def test_nothing_secret_is_shown() -> None:
    place = redis_place("rediss+sentinel://me:hunter2@h:1,[::1]:2/main/3?sentinel_password=hunter3")
    assert str(place) == "rediss+sentinel://h:1,[::1]:2/main/3"
    assert "hunter" not in repr(place)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("redis:/h", "wants redis://HOST:PORT/DB, redis+sentinel"),
        ("redis://", "wants redis://HOST:PORT/DB, redis+sentinel"),
        ("redis+sentinels://h/main", "wants redis://HOST:PORT/DB, redis+sentinel"),
        ("redis+://h", "wants redis://HOST:PORT/DB, redis+sentinel"),
        ("redis://h ost", "a blank"),
        ("redis://:hunter2@", "a host"),
        ("redis://:6379", "wants a host and a port from 1 to 65535"),
        ("redis://h:0", "wants a host and a port from 1 to 65535, got 'h:0'"),
        ("redis://h:65536", "wants a whole number from 0 to 65,535, got 65536"),
        ("redis://h:port", "wants a number as the port"),
        ("redis://me:hunter2", "a password before it, as USER:PASSWORD@HOST"),
        ("redis+cluster://a:1,b:hunter2", "wants a number as the port"),
        ("redis://::1", "IPv6 addresses in brackets"),
        ("redis://a:1,b:2", "one server has one address"),
        ("redis+cluster://" + ",".join(f"h{n}" for n in range(17)), "16 addresses are enough"),
        ("redis+cluster://a,,b", "wants a host and a port"),
        ("redis://me:hun/ter2@h", "write / as %2F"),
        ("redis://me:hun?ter2@h", "write / as %2F"),
        ("redis://me:hun#ter2@h", "write / as %2F"),
        ("redis://me@h", "a name without a password"),
        ("redis://h/one", "a DB is a number, such as 0, got 'one'"),
        ("redis://h/-1", "a DB is a number"),
        ("redis://h/10000", "a DB is a number"),
        ("redis://h/1/2", "a DB is a number"),
        ("redis+cluster://h/1", "a cluster has no other DB than 0"),
        ("redis+sentinel://h:26379", "sentinels know a primary by a name: add it"),
        ("redis+sentinel://h:26379//0", "sentinels know a primary by a name: add it"),
        ("redis+sentinel://h/main/x", "a DB is a number"),
        ("redis://h?db=1", "there is no option 'db', only ssl_ca_certs, ssl_certfile"),
        ("redis://h?db=1", "the DB stands behind the host: /1"),
        ("redis://h?max_connections=many", "there is no option 'max_connections'"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs is empty"),
        ("redis://h?ssl_ca_certs=/ca.pem", "ssl_ca_certs is about TLS: begin with rediss"),
        ("rediss://h?ssl_certfile=/own.pem", "ssl_certfile and ssl_keyfile belong together"),
        ("rediss://h?ssl_ca_certs=/a&ssl_ca_certs=/b", "one option twice"),
        ("redis://h?sentinel_password=hunter2", "sentinel_password is about sentinels"),
        ("redis+sentinel://h/main?sentinel_username=hunter2", "needs a sentinel_password"),
    ],
)
def test_what_is_no_address_is_said_with_what_to_change(text: str, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        redis_place(text)
    said = str(raised.value)
    assert says in said
    assert "hun" not in said
    assert "ter2" not in said
