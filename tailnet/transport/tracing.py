"""Traces of OpenTelemetry, when its own variables ask for them (layer L2; the only file that imports it, and late).

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 tailnet serve        # pip install 'tailnet-derp[otel]'
A span for each request of the API and each try of the webhook, sent as OTLP over HTTP from a thread of the library's,
whose queue drops what the collector does not take.  Spans have no query, no header and no token.  All other OTEL_
variables mean what the library says.  Next hop: api/middleware.py, services/webhook.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import trio

from tailnet.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN: Final = "http/protobuf"
# The last spans of a server that ends; a collector that is away does not hold it up for longer.
FLUSH_SECONDS: Final = 3.0


def wants_traces(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return exporter == "otlp" or (not exporter and any(environ.get(name) for name in _ENDPOINTS))


def open_tracing(environ: Mapping[str, str]) -> "Tracing | None":
    """Begin to trace, if the environment asks for it.  Raises ConfigError."""
    if not wants_traces(environ):
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _SPOKEN)
    if protocol != _SPOKEN:
        raise ConfigError(f"traces are sent as {_SPOKEN} only, and OTEL_EXPORTER_OTLP_PROTOCOL says {protocol!r:.40}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(
            "the environment asks for traces (OTEL_...), and OpenTelemetry is not installed: "
            "pip install 'tailnet-derp[otel]', or set OTEL_SDK_DISABLED=true"
        ) from None
    ours = {"service.name": environ.get("OTEL_SERVICE_NAME") or "tailnet", "service.version": version("tailnet-derp")}
    provider = TracerProvider(resource=Resource.create(ours), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Span:
    """One that is open.  `headers` go with what it asks of others."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Any, headers: Mapping[str, str]) -> None:
        self._span = span
        self.headers = headers

    def rename(self, name: str) -> None:
        """It is known later what it is."""
        self._span.update_name(name)

    def note(self, **attributes: str | int) -> None:
        """More about it; two underscores stand for a dot."""
        self._span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})

    def fail(self, problem: str) -> None:
        """It ended badly."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, problem))


class Tracing:
    """One per server.  `close` when nothing is traced any more."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._tracer = provider.get_tracer("tailnet", version("tailnet-derp"))
        self._propagate = propagate
        self._kinds = trace.SpanKind

    @contextmanager
    def serving(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str]) -> Iterator[Span]:
        """Around the answer to a request, as a part of the caller's trace if its headers name one."""
        parent = self._propagate.extract(headers)
        with self._tracer.start_as_current_span(
            name, parent, self._kinds.SERVER, dict(attributes), record_exception=False
        ) as span:
            yield Span(span, {})

    @contextmanager
    def asking(self, name: str, url: str, attributes: Mapping[str, str]) -> Iterator[Span]:
        """Around a request of ours."""
        server = urlsplit(url).hostname or ""
        with self._tracer.start_as_current_span(
            name, None, self._kinds.CLIENT, {**attributes, "server.address": server}, record_exception=False
        ) as span:
            headers: dict[str, str] = {}
            self._propagate.inject(headers)
            yield Span(span, headers)

    async def close(self) -> None:
        """Send what waits, for a moment."""
        with trio.CancelScope(shield=True), trio.move_on_after(FLUSH_SECONDS):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)
