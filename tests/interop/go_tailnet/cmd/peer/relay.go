package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"github.com/coder/websocket"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/types/key"

	"tailnetpeers/channel"
)

// relayLink is the genuine DERP client, over the upgrade or over a websocket.
type relayLink struct {
	send func(key.NodePublic, []byte) error
	recv func() (derp.ReceivedMessage, error)
	end  func() error
}

// openRelay connects to /derp with the key of this peer's node. Events: relay_packet, relay_gone, relay_closed.
func openRelay(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		URL       string
		Websocket bool
	}](raw)
	if err != nil {
		return nil, err
	}
	where := arguments.URL
	if where == "" {
		// The embedded relay's host in the map is rewritten by each peer to the URL it reached the server by.
		p.mu.Lock()
		where = strings.TrimSuffix(p.access, "/") + "/derp"
		p.mu.Unlock()
	}
	var link *relayLink
	if arguments.Websocket {
		link, err = relayOverWebsocket(ctx, p.node, where)
	} else {
		link, err = relayOverUpgrade(ctx, p.node, where)
	}
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.relay = link
	p.mu.Unlock()
	go p.receivePackets(link)
	return nil, nil
}

func quietly(string, ...any) {}

func relayOverUpgrade(ctx context.Context, private key.NodePrivate, where string) (*relayLink, error) {
	client, err := derphttp.NewClient(private, where, quietly, netmon.NewStatic())
	if err != nil {
		return nil, err
	}
	if err := client.Connect(ctx); err != nil {
		client.Close()
		return nil, err
	}
	return &relayLink{send: client.Send, recv: client.Recv, end: client.Close}, nil
}

func relayOverWebsocket(ctx context.Context, private key.NodePrivate, where string) (*relayLink, error) {
	socket, err := channel.DialWebsocket(ctx, where, nil, []string{"derp"}, 0)
	if err != nil {
		return nil, err
	}
	if socket.Subprotocol() != "derp" {
		socket.CloseNow()
		return nil, errors.New("the server did not select the subprotocol derp")
	}
	conn := websocket.NetConn(context.Background(), socket.Conn, websocket.MessageBinary)
	client, err := derp.NewClient(private, conn, bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn)), quietly)
	if err != nil {
		socket.CloseNow()
		return nil, err
	}
	return &relayLink{send: client.Send, recv: client.Recv, end: conn.Close}, nil
}

func (p *peer) receivePackets(link *relayLink) {
	for {
		message, err := link.recv()
		if err != nil {
			p.event("relay_closed", fields{"error": err.Error()})
			link.end()
			return
		}
		switch m := message.(type) {
		case derp.ServerInfoMessage:
			// The server knows our key from here on; before that, packets for us would be lost.
			p.event("relay_ready", nil)
		case derp.ReceivedPacket:
			p.event("relay_packet", fields{"from": m.Source.String(), "payload": base64.StdEncoding.EncodeToString(m.Data)})
		case derp.PeerGoneMessage:
			p.event("relay_gone", fields{"who": m.Peer.String(), "reason": int(m.Reason)})
		}
	}
}

func (p *peer) link() (*relayLink, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.relay == nil {
		return nil, errors.New("this peer has no relay connection")
	}
	return p.relay, nil
}

func relaySend(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		To      string
		Payload []byte
	}](raw)
	if err != nil {
		return nil, err
	}
	link, err := p.link()
	if err != nil {
		return nil, err
	}
	var to key.NodePublic
	if err := to.UnmarshalText([]byte(arguments.To)); err != nil {
		return nil, err
	}
	return nil, link.send(to, arguments.Payload)
}

func relayClose(_ context.Context, p *peer, _ json.RawMessage) (fields, error) {
	link, err := p.link()
	if err != nil {
		return nil, err
	}
	return nil, link.end()
}
