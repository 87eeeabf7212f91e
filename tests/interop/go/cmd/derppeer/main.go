// Command derppeer drives the genuine DERP client over stdin and stdout.
//
// One JSON object per line.  Requests carry an id and an op; every request gets one reply with the same id and
// "ok".  Lines without an id are events: what a client received.  One process holds many named clients.
// Keys are 64 bare hex digits, packets base64.
//
// Built with the tag ts_debug_websockets and started with TS_DEBUG_DERP_WS_CLIENT=1 the same clients speak websocket.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
)

// request is the union of the arguments of all ops.
type request struct {
	ID   int64  `json:"id"`
	Op   string `json:"op"`
	Peer string `json:"peer"`

	// connect: where (URL, or Node for a DERP-map region of one node) and as whom.
	URL         string `json:"url"`
	Node        *node  `json:"node"`
	PrivateKey  string `json:"private_key"`
	MeshKey     string `json:"mesh_key"`
	Prober      bool   `json:"prober"`
	AppName     string `json:"app_name"`
	CanAckPings bool   `json:"can_ack_pings"`
	Watch       bool   `json:"watch"`
	Reconnect   bool   `json:"reconnect"`

	// send, forward, close_peer
	Src  string `json:"src"`
	Dst  string `json:"dst"`
	Data []byte `json:"data"`

	// prefer, pause
	On bool `json:"on"`

	// burst
	To     string `json:"to"`
	Count  int    `json:"count"`
	Size   int    `json:"size"`
	Window int    `json:"window"`
}

// node is what a DERP map says of one relay.
type node struct {
	Host     string `json:"host"`
	IPv4     string `json:"ipv4"`
	Port     int    `json:"port"`
	CertName string `json:"cert_name"` // a name to verify, or sha256-raw:<hex>
	Insecure bool   `json:"insecure"`
}

// object is one line of output.
type object map[string]any

// lines writes whole lines from any goroutine.
type lines struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func (l *lines) put(o object) {
	b, err := json.Marshal(o)
	if err != nil {
		log.Fatalf("derppeer: encoding %v: %v", o, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.Write(b)
	l.w.WriteByte('\n')
	if err := l.w.Flush(); err != nil {
		os.Exit(1) // whoever drove us is gone
	}
}

// program holds the clients of this process by name.
type program struct {
	out *lines

	mu    sync.Mutex
	peers map[string]*peer
}

func (p *program) peer(name string) (*peer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.peers[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("no client is named %q", name)
}

func (p *program) run(r request) (object, error) {
	if r.Op == "connect" {
		return p.connect(r)
	}
	c, err := p.peer(r.Peer)
	if err != nil {
		return nil, err
	}
	switch r.Op {
	case "send":
		return nil, c.send(r)
	case "forward":
		return nil, c.forward(r)
	case "ping":
		return c.ping()
	case "send_ping":
		return nil, c.sendPing(r)
	case "prefer":
		c.client.NotePreferred(r.On)
		return nil, nil
	case "close_peer":
		return nil, c.closePeer(r)
	case "pause":
		c.pause(r.On)
		return nil, nil
	case "burst":
		to, err := p.peer(r.To)
		if err != nil {
			return nil, err
		}
		return burst(c, to, r)
	case "close":
		p.mu.Lock()
		delete(p.peers, r.Peer)
		p.mu.Unlock()
		return nil, c.close()
	}
	return nil, fmt.Errorf("unknown op %q", r.Op)
}

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stderr)
	p := &program{out: &lines{w: bufio.NewWriter(os.Stdout)}, peers: map[string]*peer{}}
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var r request
		if err := in.Decode(&r); err == io.EOF {
			return
		} else if err != nil {
			log.Fatalf("derppeer: bad request: %v", err)
		}
		done := func() {
			o, err := p.run(r)
			if o == nil {
				o = object{}
			}
			o["id"], o["ok"] = r.ID, err == nil
			if err != nil {
				o["error"] = err.Error()
			}
			p.out.put(o)
		}
		// Sends stay in the order of their requests; what waits for the relay must not hold up the rest.
		switch r.Op {
		case "connect", "ping", "burst":
			go done()
		default:
			done()
		}
	}
}
