"""Every (state, input) of both sides: the tables are whole, and the cores do what they say."""

import itertools
from collections.abc import Callable

import pytest

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.protocol.connection import ClientConnection, ServerHandshake
from derp.protocol.frames import FrameType, encode_frame
from derp.protocol.handshake import open_client_info, seal_client_info, server_key_frame
from derp.protocol.messages import ClientInfo, KeepAlive, Ping, ServerInfo, encode
from derp.protocol.states import (
    CLIENT_TABLE,
    SERVER_TABLE,
    ClientInput,
    ClientState,
    Fault,
    ServerInput,
    ServerState,
)
from tests.vectors.derp import MESH_KEY, PRIVATE, PUBLIC

NONCE = bytes(range(24))
CLIENT_INFO = seal_client_info(PRIVATE["a"], PUBLIC["server"], ClientInfo(), NONCE)
SERVER_INFO = open_client_info(PRIVATE["server"], CLIENT_INFO[5:]).seal_server_info(ServerInfo(), NONCE)
SERVER_KEY = server_key_frame(PUBLIC["server"])


def fixed_bytes(count: int) -> bytes:
    return bytes(range(count))


def client_in(state: ClientState) -> ClientConnection:
    client = ClientConnection(PRIVATE["a"], random_bytes=fixed_bytes, mesh_key=MESH_KEY)
    if state is ClientState.CLOSED:
        with pytest.raises(RemoteProtocolError):
            client.receive_eof()
    if state in (ClientState.EXPECT_SERVER_INFO, ClientState.OPEN):
        client.receive_data(SERVER_KEY)
    if state is ClientState.OPEN:
        client.receive_data(SERVER_INFO)
    assert client.state is state
    client.data_to_send()
    return client


CLIENT_INPUTS: dict[ClientInput, Callable[[ClientConnection], object]] = {
    ClientInput.SERVER_KEY: lambda client: client.receive_data(SERVER_KEY),
    ClientInput.SERVER_INFO: lambda client: client.receive_data(SERVER_INFO),
    ClientInput.OTHER_FRAME: lambda client: client.receive_data(encode(KeepAlive())),
    ClientInput.SEND: lambda client: client.send_ping(b"12345678"),
    ClientInput.END: lambda client: client.receive_eof(),
}


@pytest.mark.parametrize(("state", "what"), list(itertools.product(ClientState, ClientInput)))
def test_every_input_in_every_state_of_a_client(state: ClientState, what: ClientInput) -> None:
    client, following = client_in(state), CLIENT_TABLE[state][what]
    if following is Fault.REMOTE:
        with pytest.raises(RemoteProtocolError):
            CLIENT_INPUTS[what](client)
        assert client.state is ClientState.CLOSED
        assert client.data_to_send() == []
    elif following is Fault.LOCAL:
        # A core that died of a fault of its peer goes on naming that fault when it is fed.
        receiving = what in (ClientInput.SERVER_KEY, ClientInput.SERVER_INFO, ClientInput.OTHER_FRAME)
        with pytest.raises(RemoteProtocolError if receiving else LocalProtocolError):
            CLIENT_INPUTS[what](client)
        assert client.state is state
        assert client.data_to_send() == []
    else:
        CLIENT_INPUTS[what](client)
        assert client.state is following


def test_fast_start_begins_past_the_greeting() -> None:
    client = ClientConnection(PRIVATE["a"], random_bytes=fixed_bytes, server_key=PUBLIC["server"])
    assert client.state is ClientState.EXPECT_SERVER_INFO


def server_in(state: ServerState) -> ServerHandshake:
    server = ServerHandshake(PRIVATE["server"], random_bytes=fixed_bytes)
    if state is ServerState.CLOSED:
        server.close()
    if state in (ServerState.JUDGING, ServerState.ADMITTED):
        server.receive_data(CLIENT_INFO)
    if state is ServerState.ADMITTED:
        server.accept()
    assert server.state is state
    server.data_to_send()
    return server


SERVER_INPUTS: dict[ServerInput, Callable[[ServerHandshake], object]] = {
    ServerInput.CLIENT_INFO: lambda server: server.receive_data(CLIENT_INFO),
    ServerInput.OTHER_FRAME: lambda server: server.receive_data(encode(Ping(b"12345678"))),
    ServerInput.ACCEPT: lambda server: server.accept(),
    ServerInput.CLOSE: lambda server: server.close(),
    ServerInput.END: lambda server: server.receive_eof(),
}


@pytest.mark.parametrize(("state", "what"), list(itertools.product(ServerState, ServerInput)))
def test_every_input_in_every_state_of_a_relay(state: ServerState, what: ServerInput) -> None:
    server, following = server_in(state), SERVER_TABLE[state][what]
    if isinstance(following, Fault):
        with pytest.raises(RemoteProtocolError if following is Fault.REMOTE else LocalProtocolError):
            SERVER_INPUTS[what](server)
        assert server.state is (ServerState.CLOSED if following is Fault.REMOTE else state)
        assert server.data_to_send() == []
    else:
        SERVER_INPUTS[what](server)
        assert server.state is following


@pytest.mark.parametrize("state", ClientState)
def test_every_way_to_send_obeys_the_state(state: ClientState) -> None:
    allowed = CLIENT_TABLE[state][ClientInput.SEND] is state
    ways: list[Callable[[ClientConnection], None]] = [
        lambda client: client.send_packet(bytes(32), b""),
        lambda client: client.send_ping(bytes(8)),
        lambda client: client.send_note_preferred(True),
        lambda client: client.send_watch_conns(),
        lambda client: client.send_close_peer(bytes(32)),
        lambda client: client.send_forward_packet(bytes(32), bytes(32), b""),
    ]
    for send in ways:
        client = client_in(state)
        if allowed:
            send(client)
        else:
            with pytest.raises(LocalProtocolError, match=state.name):
                send(client)
        assert len(client.data_to_send()) == allowed


def test_no_way_leads_out_of_closed() -> None:
    assert {n for n in CLIENT_TABLE[ClientState.CLOSED].values() if isinstance(n, ClientState)} == {ClientState.CLOSED}
    assert {n for n in SERVER_TABLE[ServerState.CLOSED].values() if isinstance(n, ServerState)} == {ServerState.CLOSED}


def test_an_open_client_takes_every_frame() -> None:
    # connection.py relies on it: it does not look an ordinary frame of an open connection up.
    assert CLIENT_TABLE[ClientState.OPEN][ClientInput.OTHER_FRAME] is ClientState.OPEN
    client = client_in(ClientState.OPEN)
    for frame_type in set(range(256)) - {FrameType.SERVER_INFO}:
        client.receive_data(encode_frame(frame_type, bytes(64)))
    assert client.state is ClientState.OPEN
