"""Passwords and tokens in the address of a DERP map: neither log nor pages of a coordinator show one."""

import subprocess
import sys

import httpx
import pytest
import trio

from tests.support.sites import Site, answer

SECRET = "s3cretHunter2"
PAGES = ("/", "/healthz", "/readyz", "/metrics", "/debug/", "/debug/tailnet", "/debug/tailnet?format=json")


@pytest.mark.parametrize("kind", ["no map", "not found", "broken URL"])
async def test_neither_log_nor_pages_tell_the_password(kind: str, nursery: trio.Nursery) -> None:
    site = Site()
    site.respond = lambda head: answer(b"{", status="404 Not Found" if kind == "not found" else "200 OK")
    await nursery.start(site.serve)
    user = f"admin:x/{SECRET}@" if kind == "broken URL" else f"admin:{SECRET}@"
    url = f"{site.url.replace('://', f'://{user}')}?region=fra&token={SECRET}"
    command = [sys.executable, "-m", "tailnet", "serve", "--dev", "--json", "--listen", "127.0.0.1:0"]
    command += ["--stun-listen", "127.0.0.1:0", "--derp-map-url", url]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = b""
    pages = ""
    try:
        with trio.fail_after(60):
            while b'"serving"' not in said and (chunk := await process.stdout.receive_some()):
                said += chunk
            port = said.partition(b'"port": ')[2].partition(b",")[0].partition(b"}")[0].decode()
            if b'"serving"' in said:
                async with httpx.AsyncClient() as client:
                    for path in PAGES:
                        pages += (await client.get(f"http://127.0.0.1:{port}{path}")).text
                process.terminate()
            while chunk := await process.stdout.receive_some():
                said += chunk
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
    log = said.decode()
    assert SECRET not in log + pages
    assert "127.0.0.1" in log
    if pages:
        assert "<secret>@127.0.0.1" in log + pages
        assert "&lt;secret&gt;@127.0.0.1" in pages
