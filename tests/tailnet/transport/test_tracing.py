"""Traces: nothing and no import when off; when on, spans at a real OTLP receiver on this machine."""

import subprocess
import sys
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tailnet.config import WebhookTarget
from tailnet.errors import ConfigError
from tailnet.transport.tracing import open_tracing, wants_traces
from tests.support.receivers import Receiver, answer
from tests.support.seeds import agent_token, user_token
from tests.support.tailnet_driver import AGENT_DOOR, open_connection, open_peer, read_answer
from tests.tailnet.conftest import Serve

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_when_traces_are_wanted(environ: dict[str, str], wanted: bool) -> None:
    assert wants_traces(environ) is wanted


def test_off_it_is_not_even_imported() -> None:
    # FastAPI looks by itself whether the programming interface is there; what collects and sends is ours to begin.
    for module, what in (
        ("tailnet.transport.tracing", "opentelemetry"),
        ("tailnet.server.server", "opentelemetry.sdk"),
    ):
        program = (
            f"import sys, {module}, tailnet.transport.tracing as t; assert t.open_tracing({{}}) is None; "
            f"print(sorted(m for m in sys.modules if m.startswith({what!r})))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def test_what_it_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
    with pytest.raises(ConfigError, match="http/protobuf only"):
        open_tracing({**asked, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"pip install 'tailnet-derp\[otel\]'"):
        open_tracing(asked)


def spans(receiver: Receiver) -> dict[str, Any]:
    """By name, those that arrived."""
    found: dict[str, Any] = {}
    for message in receiver.messages:
        assert (message.path, message.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        for resource in ExportTraceServiceRequest.FromString(message.body).resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            assert names["service.name"] == "a coordinator"
            found.update({span.name: span for scope in resource.scope_spans for span in scope.spans})
    return found


def attributes(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value or str(each.value.int_value) for each in span.attributes}


async def test_spans_of_requests_and_of_the_webhook(
    serve: Serve, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector, hook = Receiver(respond=lambda message: answer(200)), Receiver()
    await nursery.start(collector.serve)
    await nursery.start(hook.serve)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.removesuffix("/hook"))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "a coordinator")
    server = await serve(webhook=WebhookTarget(hook.url, (b"s" * 32,)))
    token = user_token("alice")
    async with open_connection(server) as stream:
        head = [f"GET /api/v2/users/me?coder_session_token={token} HTTP/1.1", "Host: x", "X-Request-Id: mine"]
        head += [f"traceparent: 00-{TRACE}-{PARENT}-01", "", ""]
        await stream.send_all("\r\n".join(head).encode())
        assert (await read_answer(stream)).status == 200
    async with open_peer(server, AGENT_DOOR, agent_token("main")):
        with trio.fail_after(60):
            await hook.wait_messages(1)
    await server.drain()
    with trio.fail_after(60):
        while not {"GET /api/v2/users/{user}", "webhook"} <= spans(collector).keys():
            await collector.wait_messages(len(collector.messages) + 1)
    request, post = spans(collector)["GET /api/v2/users/{user}"], spans(collector)["webhook"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    about = attributes(request)
    assert about["http.route"] == "/api/v2/users/{user}"
    assert (about["http.response.status_code"], about["tailnet.request_id"]) == ("200", "mine")
    assert about["tailnet.caller_kind"] == "user"
    assert attributes(post)["tailnet.event.type"] == "agent.connected"
    told = [message.headers["traceparent"] for message in hook.messages]
    assert any(each.startswith(f"00-{post.trace_id.hex()}-{post.span_id.hex()}-") for each in told)
    whole = b"".join(message.body for message in collector.messages)
    assert token.encode() not in whole
    assert agent_token("main").encode() not in whole
