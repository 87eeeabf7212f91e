// Command control is the control server of a tailnet for tests, on loopback, around the genuine testcontrol package, and the
// hand that drives the tailscaleds in it.  First line on stdout: {"url": ...}.  Then one JSON request a line on stdin, one reply
// each, in order.  Each but the first names the tailscaled that it is about by its socket, S:
//
//	{"op": "map", "map": M}                   the tailnet's DERP map, a tailcfg.DERPMap; before the first tailscaled is up
//	{"op": "up", "socket": S}                 log it in; reply {"key": "nodekey:..."}, its own key
//	{"op": "add", "socket": S, "key": K}      K joins; the reply comes when that tailscaled knows it
//	{"op": "remove", "socket": S, "key": K}   K is taken from its netmap; the reply comes when it has forgotten it
//	{"op": "down", "socket": S}               `tailscale down`
//
// It ends with its stdin.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
)

// A hang guard: nothing here takes a second on an idle machine.
const patience = 30 * time.Second

type request struct {
	Op     string           `json:"op"`
	Socket string           `json:"socket"`
	Key    key.NodePublic   `json:"key"`
	Map    *tailcfg.DERPMap `json:"map"`
}

type tailnet struct {
	url     string
	control *testcontrol.Server
	nodes   map[string]*node
	ids     map[key.NodePublic]tailcfg.NodeID
}

// node is one tailscaled.
type node struct {
	client *local.Client
	self   key.NodePublic
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	t := &tailnet{
		url: url,
		// An empty DERP map: the default one is of relays on the internet.
		control: &testcontrol.Server{ExplicitBaseURL: url, DERPMap: &tailcfg.DERPMap{}, Logf: log.Printf},
		nodes:   map[string]*node{},
		ids:     map[key.NodePublic]tailcfg.NodeID{},
	}
	go func() { log.Fatal(http.Serve(listener, t.control)) }()
	say(map[string]any{"url": url})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		reply, err := t.answer(lines.Bytes())
		if err != nil {
			reply = map[string]any{"error": err.Error()}
		}
		say(reply)
	}
}

func say(value map[string]any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		log.Fatal(err)
	}
}

func (t *tailnet) answer(line []byte) (map[string]any, error) {
	var asked request
	if err := json.Unmarshal(line, &asked); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if asked.Op == "map" {
		t.control.DERPMap = asked.Map
		return map[string]any{}, nil
	}
	n := t.nodes[asked.Socket]
	if n == nil {
		n = &node{client: &local.Client{Socket: asked.Socket, UseSocketOnly: true}}
		t.nodes[asked.Socket] = n
	}
	var err error
	switch asked.Op {
	case "up":
		err = t.up(ctx, n)
	case "add":
		err = t.add(ctx, n, asked.Key)
	case "remove":
		err = t.remove(ctx, n, asked.Key)
	case "down":
		wanted := &ipn.MaskedPrefs{WantRunningSet: true}
		if _, err = n.client.EditPrefs(ctx, wanted); err == nil {
			err = n.wait(ctx, "Stopped")
		}
	default:
		err = fmt.Errorf("no such op: %q", asked.Op)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", asked.Op, err)
	}
	return map[string]any{"key": n.self.String()}, nil
}

func (t *tailnet) up(ctx context.Context, n *node) error {
	prefs := ipn.NewPrefs()
	prefs.ControlURL, prefs.WantRunning, prefs.Hostname = t.url, true, fmt.Sprintf("node%d", len(t.nodes))
	if err := n.client.Start(ctx, ipn.Options{UpdatePrefs: prefs}); err != nil {
		return err
	}
	if err := n.client.StartLoginInteractive(ctx); err != nil {
		return err
	}
	// Without a relay to talk to it stays Starting; the netmap is there in both.
	if err := n.wait(ctx, "Starting", "Running"); err != nil {
		return err
	}
	status, err := n.client.StatusWithoutPeers(ctx)
	if err != nil {
		return err
	}
	n.self = status.Self.PublicKey
	return t.control.AwaitNodeInMapRequest(ctx, n.self)
}

func (n *node) wait(ctx context.Context, states ...string) error {
	return poll(ctx, func() (bool, error) {
		status, err := n.client.StatusWithoutPeers(ctx)
		return err == nil && slices.Contains(states, status.BackendState), err
	})
}

func (t *tailnet) add(ctx context.Context, n *node, k key.NodePublic) error {
	id := tailcfg.NodeID(1000 + len(t.ids))
	t.ids[k] = id
	address := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 9, byte(len(t.ids))}), 32)
	t.control.UpdateNode(&tailcfg.Node{
		ID:                id,
		StableID:          tailcfg.StableNodeID(fmt.Sprintf("stable%d", id)),
		Name:              fmt.Sprintf("node%d.test.", id),
		User:              tailcfg.UserID(id),
		Machine:           key.NewMachine().Public(),
		Key:               k,
		DiscoKey:          key.NewDisco().Public(),
		MachineAuthorized: true,
		Addresses:         []netip.Prefix{address},
		AllowedIPs:        []netip.Prefix{address},
	})
	return n.known(ctx, k, true)
}

func (t *tailnet) remove(ctx context.Context, n *node, k key.NodePublic) error {
	if !t.control.AddRawMapResponse(n.self, &tailcfg.MapResponse{PeersRemoved: []tailcfg.NodeID{t.ids[k]}}) {
		return errors.New("the tailscaled does not listen to us")
	}
	return n.known(ctx, k, false)
}

// known waits until the tailscaled, asked as the genuine relay asks it, knows the key or does not.
func (n *node) known(ctx context.Context, k key.NodePublic, wanted bool) error {
	return poll(ctx, func() (bool, error) {
		_, err := n.client.WhoIsNodeKey(ctx, k)
		if err != nil && !errors.Is(err, local.ErrPeerNotFound) {
			return false, err
		}
		return (err == nil) == wanted, nil
	})
}

func poll(ctx context.Context, done func() (bool, error)) error {
	for {
		if is, err := done(); is || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
