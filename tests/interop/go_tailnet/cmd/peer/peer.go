package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"storj.io/drpc"
	"tailscale.com/types/key"

	"tailnetpeers/channel"
)

// peer is one named agent or client with its keys and whatever it has open.
type peer struct {
	name  string
	node  key.NodePrivate
	disco key.DiscoPrivate

	mu      sync.Mutex
	socket  *channel.Socket
	client  *channel.Client
	streams map[string]*openedStream
	relay   *relayLink
	legacy  io.ReadWriteCloser
	access  string // the URL dialled, which is where the embedded relay is too
}

// openedStream can be given up as callers do: by cancelling the context of the call.
type openedStream struct {
	drpc.Stream
	cancel context.CancelFunc
}

// newStream starts a streaming RPC that lasts beyond the operation that asked for it.
func newStream(client *channel.Client, rpc string) (*openedStream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := client.NewStream(ctx, rpc, encoding{})
	if err != nil {
		cancel()
		return nil, err
	}
	return &openedStream{stream, cancel}, nil
}

func newPeer(name string) *peer {
	return &peer{name: name, node: key.NewNode(), disco: key.NewDisco(), streams: map[string]*openedStream{}}
}

func (p *peer) event(kind string, more fields) {
	line := fields{"peer": p.name, "event": kind}
	for name, value := range more {
		line[name] = value
	}
	lines.write(line)
}

var errNotConnected = errors.New("this peer has no session")

func (p *peer) session() (*channel.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client == nil {
		return nil, errNotConnected
	}
	return p.client, nil
}

func (p *peer) openSocket() (*channel.Socket, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.socket == nil {
		return nil, errNotConnected
	}
	return p.socket, nil
}

// target is where and as whom to dial.
type target struct {
	URL           string // http://host:port
	Path          string
	Query         map[string]string
	Token         string
	TokenIn       string `json:"token_in"` // cookie, header, bearer, query or access_token
	ReceiveBuffer int    `json:"receive_buffer"`
	Subprotocols  []string
}

func (t target) dial(ctx context.Context) (*channel.Socket, error) {
	query := url.Values{}
	for name, value := range t.Query {
		query.Set(name, value)
	}
	header := http.Header{}
	switch t.TokenIn {
	case "cookie":
		header.Set("Cookie", "coder_session_token="+t.Token)
	case "header", "":
		header.Set("Coder-Session-Token", t.Token)
	case "bearer":
		header.Set("Authorization", "Bearer "+t.Token)
	case "query":
		query.Set("coder_session_token", t.Token)
	case "access_token":
		query.Set("access_token", t.Token)
	default:
		return nil, fmt.Errorf("token_in %q is not a place for a token", t.TokenIn)
	}
	full := strings.TrimSuffix(t.URL, "/") + t.Path
	if len(query) > 0 {
		full += "?" + query.Encode()
	}
	return channel.DialWebsocket(ctx, full, header, t.Subprotocols, t.ReceiveBuffer)
}

// identity gives the keys in the forms that the wire uses.
func identity(_ context.Context, p *peer, _ json.RawMessage) (fields, error) {
	raw, err := p.node.Public().MarshalBinary()
	return fields{"key": hex.EncodeToString(raw), "node_key": p.node.Public().String(), "disco": p.disco.Public().String()}, err
}

// dial opens the websocket and the session above it. The event "closed" follows when the session ends.
func dial(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	t, err := parse[target](raw)
	if err != nil {
		return nil, err
	}
	socket, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	client, err := channel.NewClient(socket)
	if err != nil {
		socket.CloseNow()
		return nil, err
	}
	p.mu.Lock()
	p.socket, p.client, p.access = socket, client, t.URL
	p.mu.Unlock()
	go func() {
		<-client.Closed()
		p.event("closed", nil)
	}()
	return nil, nil
}

// ping is the session's own keep-alive: a yamux ping there and back.
func ping(_ context.Context, p *peer, _ json.RawMessage) (fields, error) {
	client, err := p.session()
	if err != nil {
		return nil, err
	}
	rtt, err := client.Session.Ping()
	return fields{"seconds": rtt.Seconds()}, err
}

// hangUp ends the connection without a word ("tcp"), with a websocket close 1000 ("websocket"), or as Session.Close does ("yamux").
func hangUp(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct{ How string }](raw)
	if err != nil {
		return nil, err
	}
	socket, err := p.openSocket()
	if err != nil {
		return nil, err
	}
	switch arguments.How {
	case "tcp":
		return nil, socket.Wire.Close()
	case "websocket":
		return nil, socket.Close(websocket.StatusNormalClosure, "")
	case "yamux":
		client, err := p.session()
		if err != nil {
			return nil, err
		}
		return nil, client.Session.Close()
	}
	return nil, fmt.Errorf("hang_up: how %q", arguments.How)
}

func pauseReading(_ context.Context, p *peer, _ json.RawMessage) (fields, error) {
	socket, err := p.openSocket()
	if err == nil {
		socket.Wire.Pause()
	}
	return nil, err
}

func resumeReading(_ context.Context, p *peer, _ json.RawMessage) (fields, error) {
	socket, err := p.openSocket()
	if err != nil {
		return nil, err
	}
	socket.Wire.Resume()
	return fields{"received": socket.Wire.Received()}, nil
}

// halfOpen opens count streams, writes the same bytes (perhaps none) on each, and leaves them. Reply: how many took
// all of it.
func halfOpen(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		Count int
		Hex   string
	}](raw)
	if err != nil {
		return nil, err
	}
	data, err := hex.DecodeString(arguments.Hex)
	if err != nil {
		return nil, err
	}
	client, err := p.session()
	if err != nil {
		return nil, err
	}
	opened := 0
	// OpenStream blocks while the backlog of 256 is unacknowledged; a server that stops accepting is told from `opened`.
	deadline := time.AfterFunc(callLimit/2, func() { client.Session.Close() })
	defer deadline.Stop()
	for range arguments.Count {
		stream, err := client.Session.OpenStream()
		if err != nil {
			break
		}
		if len(data) > 0 {
			go func() {
				// A server that ends the stream takes no more of it, so a blocked write must end too.
				io.Copy(io.Discard, stream)
				stream.Close()
			}()
			if _, err := stream.Write(data); err != nil {
				continue
			}
		}
		opened++
	}
	return fields{"opened": opened}, nil
}
