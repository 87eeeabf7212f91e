"""An OAuth provider on loopback that keeps the rules: codes and refresh tokens are good once, PKCE and secrets count.

`open_provider()` serves it; what it is asked it notes, and how it misbehaves is set on it.
"""

import hashlib
import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

import trio

from tailnet.config.external_auth import Provider, providers
from tests.support.sites import answer, read_message

CLIENT_ID, CLIENT_SECRET = "the client", "s3cret & of / the=client"
JSON = "Content-Type: application/json"


@dataclass
class TestProvider:
    """`misbehave(path) -> bytes | None` answers instead; b"" hangs up, None lets it go on."""

    __test__ = False

    port: int = 0
    life_seconds: int | None = 3600  # of an access token
    rotates: bool = True  # whether a refresh token is good once
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)  # code: challenge, redirect_uri
    refresh_tokens: set[str] = field(default_factory=set)
    good_tokens: set[str] = field(default_factory=set)
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)  # path, form, headers
    misbehave: Callable[[str], bytes | None] = lambda path: None
    hold: trio.Event | None = None  # what answers wait for
    _count: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def config(self, **changes: Any) -> tuple[Provider, ...]:
        """As settings name it."""
        table = {
            "id": "git",
            "type": "gitlab",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "auth_url": f"{self.url}/authorize",
            "token_url": f"{self.url}/token",
            "validate_url": f"{self.url}/user",
            "regex": r"^(https?://)?git\.example\.com(/.*)?$",
            "scopes": ["read", "write"],
            "display_name": "Git Example",
        }
        return providers([table | changes])

    def sign_in(self, url: str) -> dict[str, str]:
        """What a user's browser does there: the query with which it comes back to us."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert url.startswith(f"{self.url}/authorize?")
        assert (query["response_type"], query["client_id"]) == ("code", CLIENT_ID)
        assert query["code_challenge_method"] == "S256"
        code = self._fresh("code")
        self.codes[code] = query["code_challenge"], query["redirect_uri"]
        return {"code": code, "state": query["state"]}

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}-of-the-provider"

    def _respond(self, path: str, form: dict[str, str], headers: dict[str, str]) -> bytes:
        changed = self.misbehave(path)
        if changed is not None:
            return changed
        if path.startswith("/authorize?"):  # a browser, whose user signs in and says yes
            query = self.sign_in(self.url + path)
            back = f"{parse_qs(urlsplit(path).query)['redirect_uri'][0]}?{urlencode(query)}"
            return answer(b"", f"Location: {back}", status="302 Found")
        if path == "/user":
            token = headers.get("authorization", "").removeprefix("Bearer ")
            return answer(b"{}", JSON, status="200 OK" if token in self.good_tokens else "401 Unauthorized")
        return self._token(form, headers)

    def _token(self, form: dict[str, str], headers: dict[str, str]) -> bytes:
        given = form.get("client_id", ""), form.get("client_secret", "")
        basic = headers.get("authorization", "").removeprefix("Basic ")
        if basic:
            given = tuple(unquote(part) for part in b64decode(basic).decode().split(":"))  # type: ignore[assignment]
        if given != (CLIENT_ID, CLIENT_SECRET):
            return _refusal("invalid_client")
        if form.get("grant_type") == "authorization_code":
            challenge, redirect_uri = self.codes.pop(form.get("code", ""), ("", ""))
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            if urlsafe_b64encode(digest).rstrip(b"=").decode() != challenge or form["redirect_uri"] != redirect_uri:
                return _refusal("invalid_grant")
        elif form.get("refresh_token") in self.refresh_tokens:
            if self.rotates:
                self.refresh_tokens.discard(form["refresh_token"])
        else:
            return _refusal("invalid_grant")
        token, refresh = self._fresh("token"), self._fresh("refresh")
        self.good_tokens.add(token)
        self.refresh_tokens.add(refresh)
        body: dict[str, Any] = {"access_token": token, "token_type": "Bearer", "refresh_token": refresh, "team": "t1"}
        if self.life_seconds is not None:
            body["expires_in"] = self.life_seconds
        return answer(json.dumps(body).encode(), JSON)

    async def _connection(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                found = await read_message(stream, b"")
                if found is None:
                    return  # browsers connect in advance
                message = found[0]
                path, form, headers = message.path, dict(parse_qsl(message.body.decode())), message.headers
                self.asked.append((path, form, headers))
                if self.hold is not None:
                    await self.hold.wait()
                await stream.send_all(
                    self._respond(path, form, headers).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
                )


def _refusal(code: str) -> bytes:
    body = json.dumps({"error": code, "error_description": f"it is {code}"}).encode()
    return answer(body, JSON, status="400 Bad Request")


@asynccontextmanager
async def open_provider() -> AsyncIterator[TestProvider]:
    """A provider that serves until the block ends."""
    provider = TestProvider()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        provider.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, provider._connection, listeners)
        try:
            yield provider
        finally:
            nursery.cancel_scope.cancel()
