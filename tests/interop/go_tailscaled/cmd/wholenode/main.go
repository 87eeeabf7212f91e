// Command wholenode is a genuine node as a whole: magicsock, wireguard-go and gVisor's stack, put together by wgengine and
// wgengine/netstack without a tunnel device.  Its one peer is whoever it is told of; its relay is region 900.
//
// Ports of its stack: 7 echoes to the end of the stream; 9 reads to the end and answers with the SHA-256 of what came, in
// hex; 10 answers with the count; 19 reads a line with a number and answers with so many random bytes and their SHA-256 in
// hex; 20 answers with so many bytes alone.  Any other port refuses.  UDP goes to 127.0.0.1 of this machine, as in agents.
//
// stdin has one line per order, and each is answered with a line of JSON on stdout:
//
//	peer DISCO [ENDPOINT...]   the disco key of its peer, and where that may be
//	endpoints                  where it may be reached itself
//	put PORT BYTES             dials the peer, sends, half-closes, reads what 9 or 10 answers
//	get PORT BYTES             dials the peer, sends the number, reads what 19 or 20 answers
//	echo PORT BYTES            dials the peer, sends and reads at once, compares
//	refused PORT               dials a port where nobody listens
//	udp PORT BYTES             sends the peer a datagram until the same comes back
//	ping KIND                  disco or TSMP
//	usage                      seconds of CPU that it used
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go4.org/mem"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/net/dns"
	"tailscale.com/tailcfg"
	"tailscale.com/tsd"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/types/netmap"
	"tailscale.com/wgengine"
	"tailscale.com/wgengine/filter"
	"tailscale.com/wgengine/netstack"
	"tailscale.com/wgengine/router"
	"tailscale.com/wgengine/wgcfg"
)

const region = 900

func raw(text string) []byte {
	bytes, err := hex.DecodeString(text)
	if err != nil {
		log.Fatal(err)
	}
	return bytes
}

// node is the engine and the one peer that it knows.
type node struct {
	system      *tsd.System
	engine      wgengine.Engine
	stack       *netstack.Impl
	self, other *tailcfg.Node
	private     key.NodePrivate
	endpoints   atomic.Pointer[string]
}

func lookUp(n *node) {
	peer, address := n.other.Key, n.other.Addresses[0]
	n.engine.SetPeerByIPPacketFunc(func(to netip.Addr) (key.NodePublic, bool) { return peer, address.Contains(to) })
	n.engine.SetPeerConfigFunc(func(whose key.NodePublic) ([]netip.Prefix, bool) {
		return []netip.Prefix{address}, whose == peer
	})
	n.engine.SetPeerForIPFunc(func(of netip.Addr) (wgengine.PeerForIP, bool) {
		switch {
		case address.Contains(of):
			return wgengine.PeerForIP{Node: n.other.View(), Route: address}, true
		case n.self.Addresses[0].Contains(of):
			return wgengine.PeerForIP{Node: n.self.View(), IsSelf: true, Route: n.self.Addresses[0]}, true
		}
		return wgengine.PeerForIP{}, false
	})
}

// meet tells the node of its peer.
func (n *node) meet(disco string, endpoints []string) {
	n.other.DiscoKey = key.DiscoPublicFromRaw32(mem.B(raw(disco)))
	for _, text := range endpoints {
		n.other.Endpoints = append(n.other.Endpoints, netip.MustParseAddrPort(text))
	}
	n.engine.SetSelfNode(n.self.View())
	n.system.MagicSock.Get().SetNetworkMap(n.self.View(), []tailcfg.NodeView{n.other.View()})
	n.stack.UpdateNetstackIPs(&netmap.NetworkMap{SelfNode: n.self.View()})
}

func (n *node) dial(port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return n.stack.DialContextTCP(ctx, netip.AddrPortFrom(n.other.Addresses[0].Addr(), port))
}

// exchange sends a datagram as often as it takes: one may be lost.
func (n *node) exchange(port uint16, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := n.stack.DialContextUDP(ctx, netip.AddrPortFrom(n.other.Addresses[0].Addr(), port))
	if err != nil {
		return err
	}
	defer conn.Close()
	sent, got := random(size), make([]byte, 2*size+1)
	for ctx.Err() == nil {
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if length, err := conn.Read(got); err == nil && bytes.Equal(got[:length], sent) {
			return nil
		}
	}
	return ctx.Err()
}

func newNode(logf logger.Logf, private, peer, here, there string, relay tailcfg.DERPNode) *node {
	n := &node{system: tsd.NewSystem(), private: key.NodePrivateFromRaw32(mem.B(raw(private)))}
	own, address := []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(here), 128)}, []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(there), 128)}
	hostinfo := (&tailcfg.Hostinfo{}).View()
	n.self = &tailcfg.Node{ID: 1, Key: n.private.Public(), HomeDERP: region, Addresses: own, AllowedIPs: own, Hostinfo: hostinfo}
	n.other = &tailcfg.Node{
		ID: 2, Key: key.NodePublicFromRaw32(mem.B(raw(peer))), HomeDERP: region, Addresses: address, AllowedIPs: address,
		Hostinfo: hostinfo,
	}
	var err error
	n.engine, err = wgengine.NewUserspaceEngine(logf, wgengine.Config{
		EventBus: n.system.Bus.Get(), SetSubsystem: n.system.Set, HealthTracker: n.system.HealthTracker.Get(),
		Metrics: n.system.UserMetricsRegistry(),
	})
	if err != nil {
		log.Fatal(err)
	}
	n.endpoints.Store(new(string))
	n.engine.SetStatusCallback(func(status *wgengine.Status, err error) {
		if err == nil {
			var texts []string
			for _, endpoint := range status.LocalAddrs {
				texts = append(texts, endpoint.Addr.String())
			}
			text := strings.Join(texts, " ")
			n.endpoints.Store(&text)
		}
	})
	n.engine.SetFilter(filter.NewAllowAllForTest(logger.Discard))
	n.stack, err = netstack.Create(logf, n.system.Tun.Get(), n.engine, n.system.MagicSock.Get(), n.system.Dialer.Get(),
		n.system.DNSManager.Get(), n.system.ProxyMapper())
	if err != nil {
		log.Fatal(err)
	}
	n.stack.ProcessLocalIPs = true
	n.stack.GetTCPHandlerForFlow = func(_, to netip.AddrPort) (func(net.Conn), bool) { return services[to.Port()], true }
	if err := n.stack.Start(nil); err != nil {
		log.Fatal(err)
	}
	n.system.Tun.Get().Start()
	lookUp(n)
	n.engine.SetSelfNode(n.self.View())
	n.system.MagicSock.Get().SetDERPMap(&tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{region: {
		RegionID: region, RegionCode: "test", Nodes: []*tailcfg.DERPNode{&relay},
	}}})
	err = n.engine.Reconfig(&wgcfg.Config{PrivateKey: n.private, Addresses: own}, &router.Config{LocalAddrs: own}, &dns.Config{})
	if err != nil {
		log.Fatal(err)
	}
	return n
}

type result struct {
	OK      bool    `json:"ok"`
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
	Text    string  `json:"text,omitempty"`
}

func usage() string {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return strconv.FormatFloat(time.Duration(used.Utime.Nano()+used.Stime.Nano()).Seconds(), 'f', 6, 64)
}

func (n *node) ping(kind string) result {
	answers := make(chan *ipnstate.PingResult, 1)
	n.engine.Ping(n.other.Addresses[0].Addr(), tailcfg.PingType(kind), 0, func(answer *ipnstate.PingResult) { answers <- answer })
	select {
	case answer := <-answers:
		way := answer.Endpoint
		if way == "" {
			way = "derp-" + strconv.Itoa(answer.DERPRegionID)
		}
		return result{OK: answer.Err == "", Error: answer.Err, Text: way}
	case <-time.After(2 * time.Second):
		return result{Error: "no pong"}
	}
}

func (n *node) obey(words []string) result {
	switch words[0] {
	case "peer":
		n.meet(words[1], words[2:])
		return result{OK: true}
	case "endpoints":
		return result{OK: true, Text: *n.endpoints.Load()}
	case "ping":
		return n.ping(words[1])
	case "usage":
		return result{OK: true, Text: usage()}
	}
	port, _ := strconv.Atoi(words[1])
	size := 0
	if len(words) > 2 {
		size, _ = strconv.Atoi(words[2])
	}
	var err error
	if words[0] == "udp" {
		err = n.exchange(uint16(port), size)
	} else {
		err = run(n.dial, words[0], uint16(port), size)
	}
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{OK: true}
}

func main() {
	private := flag.String("private", "", "its node key, private, hex")
	peer := flag.String("peer", "", "the node key of its one peer, hex")
	host := flag.String("derp", "", "address of the relay of region 900")
	port := flag.Int("port", 0, "port of that relay, TLS")
	here := flag.String("here", "", "its address in the tunnel")
	there := flag.String("there", "", "the address of the peer in the tunnel")
	flag.Parse()
	logf := logger.Discard
	if os.Getenv("WHOLENODE_LOG") != "" {
		logf = log.Printf
	}
	n := newNode(logf, *private, *peer, *here, *there, tailcfg.DERPNode{
		Name: "900a", RegionID: region, HostName: *host, IPv4: *host, IPv6: "none", DERPPort: *port, STUNPort: -1,
		InsecureForTests: true,
	})
	output := json.NewEncoder(os.Stdout)
	disco := n.system.MagicSock.Get().DiscoPublicKey().AppendTo(nil)
	output.Encode(result{OK: true, Text: hex.EncodeToString(disco)})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		began := time.Now()
		said := n.obey(strings.Fields(lines.Text()))
		said.Seconds = time.Since(began).Seconds()
		output.Encode(said)
	}
}
