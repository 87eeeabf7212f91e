package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log"
	"strings"
	"sync"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// peer is one genuine client and the loop that reads it.
type peer struct {
	name   string
	client *derphttp.Client
	out    *lines

	gate sync.RWMutex // held for writing while reading is paused

	mu    sync.Mutex
	burst *check // takes the packets of a running burst; nil otherwise
}

func parsePublic(s string) (key.NodePublic, error) {
	return key.ParseNodePublicUntyped(mem.S(s))
}

func bareHex(k key.NodePublic) string { return k.UntypedHexString() }

// newClient builds the genuine client the request describes; it does not connect yet.
func newClient(r request) (*derphttp.Client, error) {
	private := key.NewNode()
	if r.PrivateKey != "" {
		if err := private.UnmarshalText([]byte("privkey:" + r.PrivateKey)); err != nil {
			return nil, err
		}
	}
	logf := func(format string, args ...any) { log.Printf(r.Peer+": "+format, args...) }
	var c *derphttp.Client
	if r.Node != nil {
		region := &tailcfg.DERPRegion{RegionID: 900, RegionCode: "test", Nodes: []*tailcfg.DERPNode{{
			Name: "900a", RegionID: 900, HostName: r.Node.Host, IPv4: r.Node.IPv4, IPv6: "none",
			DERPPort: r.Node.Port, CertName: r.Node.CertName, InsecureForTests: r.Node.Insecure,
		}}}
		c = derphttp.NewRegionClient(private, logf, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region })
	} else {
		var err error
		if c, err = derphttp.NewClient(private, r.URL, logf, netmon.NewStatic()); err != nil {
			return nil, err
		}
	}
	if r.MeshKey != "" {
		mesh, err := key.ParseDERPMesh(r.MeshKey)
		if err != nil {
			return nil, err
		}
		c.MeshKey = mesh
	}
	c.IsProber, c.AppName, c.WatchConnectionChanges = r.Prober, r.AppName, r.Watch
	c.SetCanAckPings(r.CanAckPings)
	return c, nil
}

// connect replies once the relay has registered the client, which the first message, ServerInfo, proves.
func (p *program) connect(r request) (object, error) {
	client, err := newClient(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := client.Connect(ctx); err != nil {
		client.Close()
		return nil, err
	}
	first, err := client.Recv()
	if err != nil {
		client.Close()
		return nil, err
	}
	c := &peer{name: r.Peer, client: client, out: p.out}
	p.mu.Lock()
	_, taken := p.peers[r.Peer]
	if !taken {
		p.peers[r.Peer] = c
	}
	p.mu.Unlock()
	if taken {
		client.Close()
		return nil, fmt.Errorf("a client is already named %q", r.Peer)
	}
	local, _ := client.LocalAddr()
	o := object{
		"key":        bareHex(client.SelfPublicKey()),
		"server_key": bareHex(client.ServerPublicKey()),
		"first":      describe(first),
		"local":      local.String(),
	}
	if state, ok := client.TLSConnectionState(); ok {
		o["tls"] = tls.VersionName(state.Version)
		o["cert_sha256"] = fmt.Sprintf("%x", sha256.Sum256(state.PeerCertificates[0].Raw))
		o["meta_key"] = metaKey(state)
	}
	go c.read(r.Reconnect)
	return o, nil
}

// metaKey is the relay's key as its meta certificate tells it: with one (and TLS 1.3) the client took the fast start.
func metaKey(state *tls.ConnectionState) string {
	for _, cert := range state.PeerCertificates {
		if k, ok := strings.CutPrefix(cert.Subject.CommonName, "derpkey"); ok {
			return k
		}
	}
	return ""
}

// describe turns any message of the genuine client into an event.
func describe(m derp.ReceivedMessage) object {
	switch m := m.(type) {
	case derp.ReceivedPacket:
		return object{"event": "packet", "src": bareHex(m.Source), "data": append([]byte{}, m.Data...)}
	case derp.ServerInfoMessage:
		return object{"event": "server_info", "bytes_per_second": m.TokenBucketBytesPerSecond, "burst": m.TokenBucketBytesBurst}
	case derp.PeerGoneMessage:
		return object{"event": "peer_gone", "key": bareHex(m.Peer), "reason": int(m.Reason)}
	case derp.PeerPresentMessage:
		return object{"event": "peer_present", "key": bareHex(m.Key), "address": m.IPPort.String(), "flags": int(m.Flags)}
	case derp.KeepAliveMessage:
		return object{"event": "keep_alive"}
	case derp.HealthMessage:
		return object{"event": "health", "problem": m.Problem}
	case derp.ServerRestartingMessage:
		return object{
			"event": "restarting", "reconnect_in_ms": m.ReconnectIn.Milliseconds(), "try_for_ms": m.TryFor.Milliseconds(),
		}
	case derp.PingMessage:
		return object{"event": "ping", "payload": hex.EncodeToString(m[:])}
	case derp.PongMessage:
		return object{"event": "pong", "payload": hex.EncodeToString(m[:])}
	}
	return object{"event": "unknown", "type": fmt.Sprintf("%T", m)}
}

// read reports every message until the connection ends; with reconnect it goes on as the genuine client does.
func (c *peer) read(reconnect bool) {
	for {
		c.gate.RLock()
		c.gate.RUnlock() //lint:ignore SA2001 passing the gate is the point
		m, generation, err := c.client.RecvDetail()
		if err != nil {
			c.out.put(object{"event": "closed", "peer": c.name, "error": err.Error()})
			if reconnect && err != derphttp.ErrClientClosed {
				continue
			}
			return
		}
		switch m := m.(type) {
		case derp.ReceivedPacket:
			c.mu.Lock()
			running := c.burst
			c.mu.Unlock()
			if running != nil && running.take(m) {
				continue
			}
		case derp.PingMessage:
			// The genuine node answers in its own read loop, not inside the client package.
			c.client.SendPong(m)
		}
		o := describe(m)
		o["peer"], o["generation"] = c.name, generation
		c.out.put(o)
	}
}

// pause stops reading after at most one more message, so that the relay sees a slow reader.
func (c *peer) pause(on bool) {
	if on {
		c.gate.Lock()
	} else {
		c.gate.Unlock()
	}
}

func (c *peer) send(r request) error {
	dst, err := parsePublic(r.Dst)
	if err != nil {
		return err
	}
	return c.client.Send(dst, r.Data)
}

func (c *peer) forward(r request) error {
	src, err := parsePublic(r.Src)
	if err != nil {
		return err
	}
	dst, err := parsePublic(r.Dst)
	if err != nil {
		return err
	}
	return c.client.ForwardPacket(src, dst, lent(r.Data))
}

func (c *peer) closePeer(r request) error {
	dst, err := parsePublic(r.Dst)
	if err != nil {
		return err
	}
	return c.client.ClosePeer(dst)
}

func (c *peer) ping() (object, error) {
	begin := time.Now()
	if err := c.client.Ping(context.Background()); err != nil {
		return nil, err
	}
	return object{"seconds": time.Since(begin).Seconds()}, nil
}

// sendPing writes a Ping of the caller's bytes; the Pong comes back as an event.
func (c *peer) sendPing(r request) error {
	if len(r.Data) != 8 {
		return fmt.Errorf("a ping has 8 bytes, got %d", len(r.Data))
	}
	return c.client.SendPing([8]byte(r.Data))
}

func (c *peer) close() error { return c.client.Close() }
