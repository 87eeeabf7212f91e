package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/coder/websocket"
	"tailscale.com/types/key"
)

// legacyNode is the first protocol version's only message; its keys must parse as the genuine types.
type legacyNode struct {
	ID                  int64              `json:"id"`
	AsOf                time.Time          `json:"as_of"`
	Key                 key.NodePublic     `json:"key"`
	Disco               key.DiscoPublic    `json:"disco"`
	PreferredDERP       int                `json:"preferred_derp"`
	DERPLatency         map[string]float64 `json:"derp_latency"`
	DERPForcedWebsocket map[int]string     `json:"derp_forced_websockets"`
	Addresses           []string           `json:"addresses"`
	AllowedIPs          []string           `json:"allowed_ips"`
	Endpoints           []string           `json:"endpoints"`
}

// legacyDial opens a version 1 connection: a byte stream of JSON over the websocket. Each array is an event "nodes".
func legacyDial(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	t, err := parse[target](raw)
	if err != nil {
		return nil, err
	}
	socket, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	stream := websocket.NetConn(context.Background(), socket.Conn, websocket.MessageBinary)
	p.mu.Lock()
	p.socket, p.legacy, p.access = socket, stream, t.URL
	p.mu.Unlock()
	go func() {
		decoder := json.NewDecoder(stream)
		for {
			var nodes []legacyNode
			if err := decoder.Decode(&nodes); err != nil {
				p.event("closed", fields{"error": err.Error()})
				stream.Close()
				return
			}
			p.event("nodes", fields{"nodes": nodes})
		}
	}()
	return nil, nil
}

// legacySend sends this peer's node with the given addresses and endpoints. Reply: the node as sent.
func legacySend(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		Addresses []string
		Endpoints []string
	}](raw)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	stream := p.legacy
	p.mu.Unlock()
	if stream == nil {
		return nil, errors.New("this peer has no version 1 connection")
	}
	node := legacyNode{
		ID: 1, AsOf: time.Now().UTC(), Key: p.node.Public(), Disco: p.disco.Public(), PreferredDERP: 999,
		DERPLatency: map[string]float64{"999-v4": 0.001}, DERPForcedWebsocket: map[int]string{},
		Addresses: arguments.Addresses, AllowedIPs: arguments.Addresses, Endpoints: arguments.Endpoints,
	}
	return fields{"node": node}, json.NewEncoder(stream).Encode(node)
}
