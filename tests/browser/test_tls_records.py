"""Chromium at a relay whose TLS records are our own: pages over one connection, and DERP over a websocket."""

from dataclasses import replace

from derp.protocol.frames import FrameType
from derp.transport.tls_records import RecordLink
from tests.derp.server.world import SELF_SIGNED, open_server, port_of, relay_config
from tests.support.browser import LAPTOP, Window, look, require_browser

# Gives what comes first, which is ServerKey.
GREETED = """
const done = arguments[arguments.length - 1];
const socket = new WebSocket(arguments[0], "derp");
socket.binaryType = "arraybuffer";
socket.onerror = () => done("error");
socket.onmessage = (event) => {
  done([socket.protocol, ...new Uint8Array(event.data)]);
  socket.close();
};
"""
ASKED = """
const done = arguments[arguments.length - 1];
Promise.all(Array.from({length: 50}, () => fetch("/generate_204", {cache: "no-store"})))
  .then((answers) => done(answers.map((answer) => answer.status)), (error) => done(String(error)));
"""


async def test_pages_and_a_websocket_over_own_records() -> None:
    require_browser()
    async with open_server(relay_config(tls=replace(SELF_SIGNED, own_records=True))) as server:
        place = f"127.0.0.1:{port_of(server)}"

        def use(window: Window) -> tuple[list[int], list[object]]:
            window.driver.set_script_timeout(60)
            window.go(f"https://{place}/debug/")
            assert "DERP relay" in window.text()
            assert window.complaints() == []
            window.go(f"https://{place}/derp/probe")  # without a policy that forbids scripts to ask
            asked = window.driver.execute_async_script(ASKED)
            greeting = window.driver.execute_async_script(GREETED, f"wss://{place}/derp")
            assert any(wire._layer is not None for wire in server.reactor.wires if isinstance(wire, RecordLink))
            return asked, greeting

        asked, (protocol, *greeting) = await look(use, LAPTOP, "--ignore-certificate-errors")
        assert asked == [204] * 50
        assert protocol == "derp"
        assert greeting[0] == FrameType.SERVER_KEY
        assert bytes(greeting[13:45]) == server.config.private_key.public().raw
