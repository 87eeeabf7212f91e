"""The HTTP API's server: one connection at a time is handed to Hypercorn.  Layer L2; the only file that imports it.

server/server.py hands over connections whose first request is for the API; bytes received so far come with them.
"""

from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from derp.transport.linkstream import LinkStream

# The largest body is an identity document or a batch of logs: 1 MiB of lines in JSON.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
KEEP_ALIVE_SECONDS: Final = 30.0
READ_SECONDS: Final = 60.0


class ApiServer:
    """Serves an ASGI app on streams."""

    def __init__(self, app: Any) -> None:
        config = Config()
        config.keep_alive_timeout = KEEP_ALIVE_SECONDS
        config.include_server_header = False
        config.accesslog = None
        config.errorlog = None
        config.wsgi_max_body_size = MAX_BODY_BYTES
        config.websocket_max_message_size = MAX_BODY_BYTES
        # Proxies between us and browsers: websockets stay HTTP/1.1.
        config.alpn_protocols = ["http/1.1"]
        self._config = config
        self._app = wrap_app(app, MAX_BODY_BYTES, "asgi")
        self._context = WorkerContext(None)

    async def serve(self, stream: LinkStream) -> None:
        """Serve one connection until it ends; closes the stream."""
        try:
            await TCPServer(self._app, self._config, self._context, {}, stream)  # type: ignore[arg-type]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the caller left in the middle of an answer
        finally:
            await trio.aclose_forcefully(stream)

    async def stop(self) -> None:
        """End idle connections; those with a request in hand finish it."""
        await self._context.terminated.set()
