package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derpserver"
	"tailscale.com/types/key"
)

// frame is one whole frame on the wire of one client.
type frame struct {
	Peer string `json:"peer"`
	From string `json:"from"` // "client" or "server"
	Hex  string `json:"hex"`
}

// received is what the genuine client made of a frame.
type received struct {
	Peer    string  `json:"peer"`
	Message message `json:"message"`
}

// message is a derp.ReceivedMessage with only plain values in it.
type message map[string]any

func describe(m derp.ReceivedMessage) message {
	switch m := m.(type) {
	case derp.ServerInfoMessage:
		return message{"type": "ServerInfo", "bytes_per_second": m.TokenBucketBytesPerSecond, "burst": m.TokenBucketBytesBurst}
	case derp.ReceivedPacket:
		return message{"type": "RecvPacket", "src": hexOf(m.Source), "packet": hex.EncodeToString(m.Data)}
	case derp.KeepAliveMessage:
		return message{"type": "KeepAlive"}
	case derp.PeerGoneMessage:
		return message{"type": "PeerGone", "key": hexOf(m.Peer), "reason": int(m.Reason)}
	case derp.PeerPresentMessage:
		address := ""
		if m.IPPort.IsValid() {
			address = m.IPPort.Addr().String()
		}
		return message{"type": "PeerPresent", "key": hexOf(m.Key), "address": address, "port": int(m.IPPort.Port()), "flags": int(m.Flags)}
	case derp.PingMessage:
		return message{"type": "Ping", "payload": hex.EncodeToString(m[:])}
	case derp.PongMessage:
		return message{"type": "Pong", "payload": hex.EncodeToString(m[:])}
	case derp.HealthMessage:
		return message{"type": "Health", "text": m.Problem}
	case derp.ServerRestartingMessage:
		return message{"type": "Restarting", "reconnect_in_ms": m.ReconnectIn.Milliseconds(), "try_for_ms": m.TryFor.Milliseconds()}
	}
	panic(fmt.Sprintf("%T", m))
}

// recorder is a connection that remembers both directions.
type recorder struct {
	net.Conn
	mu            sync.Mutex
	sent, arrived []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	r.arrived = append(r.arrived, p[:n]...)
	r.mu.Unlock()
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.sent = append(r.sent, p...)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// frames cuts what was recorded; the order within one direction is kept.
func (r *recorder) frames(peer string) []frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	cut := func(from string, data []byte) (out []frame) {
		for len(data) >= derp.FrameHeaderLen {
			n := derp.FrameHeaderLen + int(binary.BigEndian.Uint32(data[1:5]))
			out = append(out, frame{peer, from, hex.EncodeToString(data[:n])})
			data = data[n:]
		}
		return out
	}
	return append(cut("client", r.sent), cut("server", r.arrived)...)
}

type peer struct {
	name     string
	wire     *recorder
	client   *derp.Client
	messages chan message
	log      *[]received
}

func quiet(string, ...any) {}

func buffered(c net.Conn) *bufio.ReadWriter {
	return bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
}

func newServer() *derpserver.Server {
	server := derpserver.New(serverKey, quiet)
	check(server.SetMeshKey(meshHex))
	return server
}

// join connects a genuine client to the genuine server and waits for its ServerInfo.
func join(server *derpserver.Server, name, address string, private key.NodePrivate, log *[]received, opts ...derp.ClientOpt) *peer {
	inside, outside := net.Pipe()
	go func() {
		defer outside.Close()
		server.Accept(context.Background(), outside, buffered(outside), address)
	}()
	p := &peer{name: name, wire: &recorder{Conn: inside}, messages: make(chan message, 64), log: log}
	client, err := derp.NewClient(private, p.wire, buffered(p.wire), quiet, opts...)
	check(err)
	p.client = client
	go func() {
		defer close(p.messages)
		for {
			m, err := client.Recv()
			if err != nil {
				return
			}
			p.messages <- describe(m)
		}
	}()
	p.expect("ServerInfo")
	return p
}

// expect waits for one message of each given type, in any order among each other.
func (p *peer) expect(types ...string) {
	got := []message{}
	for len(got) < len(types) {
		select {
		case m := <-p.messages:
			got = append(got, m)
		case <-time.After(10 * time.Second):
			check(fmt.Errorf("%s got %v, wants %v", p.name, got, types))
		}
	}
	slices.SortStableFunc(got, func(a, b message) int {
		return slices.Compare([]byte(fmt.Sprint(a)), []byte(fmt.Sprint(b)))
	})
	for _, m := range got {
		if !slices.Contains(types, m["type"].(string)) {
			check(fmt.Errorf("%s got %v, wants %v", p.name, m, types))
		}
		*p.log = append(*p.log, received{p.name, m})
	}
}

// runSession makes the genuine parties use every frame that a derper and its clients send today.
func runSession() (frames []frame, log []received) {
	server := newServer()
	defer server.Close()
	mesh, err := key.ParseDERPMesh(meshHex)
	check(err)
	a := join(server, "a", "192.0.2.7:41641", keyA, &log)
	b := join(server, "b", "[2001:db8::7]:41641", keyB, &log, derp.CanAckPings(true))
	m := join(server, "mesh", "198.51.100.1:443", keyMesh, &log, derp.MeshKey(mesh))
	p := join(server, "prober", "203.0.113.9:50000", keyProber, &log, derp.IsProber(true), derp.AppName("vectors \"é\""))

	check(m.client.WatchConnectionChanges())
	m.expect("PeerPresent", "PeerPresent", "PeerPresent", "PeerPresent")

	check(a.client.Send(keyB.Public(), []byte("hello")))
	b.expect("RecvPacket")
	check(a.client.Send(keyB.Public(), nil))
	b.expect("RecvPacket")
	check(a.client.NotePreferred(true))
	check(a.client.NotePreferred(false))
	check(a.client.SendPong([8]byte{8, 7, 6, 5, 4, 3, 2, 1}))
	check(a.client.SendPing([8]byte{1, 2, 3, 4, 5, 6, 7, 8}))
	a.expect("Pong")
	// Only what looks like disco earns a "not here".
	disco := append([]byte("TS\xf0\x9f\x92\xac"), make([]byte, 56)...)
	check(a.client.Send(fixedKey(0x77).Public(), disco))
	a.expect("PeerGone")

	check(m.client.ForwardPacket(fixedKey(0x77).Public(), keyB.Public(), []byte("from afar")))
	b.expect("RecvPacket")
	check(m.client.ClosePeer(keyProber.Public()))
	m.expect("PeerGone")
	a.wire.Close()
	b.expect("PeerGone")
	m.expect("PeerGone")
	for _, peer := range []*peer{a, b, m, p} {
		frames = append(frames, peer.wire.frames(peer.name)...)
		peer.wire.Close()
	}
	return frames, log
}
