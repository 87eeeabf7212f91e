// Package node is a genuine node as a whole: magicsock, wireguard-go and gVisor's stack, put together by wgengine and
// wgengine/netstack without a tunnel device.  It has one peer, whoever it meets.
package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

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

const dialLimit = 30 * time.Second

// Peer is whom a node meets, as a coordinator describes it.
type Peer struct {
	Key       key.NodePublic
	Disco     key.DiscoPublic
	Address   netip.Addr
	Home      int
	Endpoints []netip.AddrPort
}

// Node is the engine and the one peer that it knows.
type Node struct {
	system    *tsd.System
	engine    wgengine.Engine
	stack     *netstack.Impl
	self      *tailcfg.Node
	other     atomic.Pointer[tailcfg.Node]
	endpoints atomic.Pointer[[]string]
}

var hostinfo = (&tailcfg.Hostinfo{}).View()

// New starts a node that is at home in a region of the map.  serve tells what a port of its stack does; nil refuses.
func New(
	logf logger.Logf, private key.NodePrivate, here netip.Addr, home int, relays *tailcfg.DERPMap, serve func(port uint16) func(net.Conn),
) (*Node, error) {
	n := &Node{system: tsd.NewSystem()}
	own := []netip.Prefix{netip.PrefixFrom(here, here.BitLen())}
	n.self = &tailcfg.Node{ID: 1, Key: private.Public(), HomeDERP: home, Addresses: own, AllowedIPs: own, Hostinfo: hostinfo}
	n.endpoints.Store(&[]string{})
	var err error
	n.engine, err = wgengine.NewUserspaceEngine(logf, wgengine.Config{
		EventBus: n.system.Bus.Get(), SetSubsystem: n.system.Set, HealthTracker: n.system.HealthTracker.Get(),
		Metrics: n.system.UserMetricsRegistry(),
	})
	if err != nil {
		return nil, err
	}
	n.engine.SetStatusCallback(func(status *wgengine.Status, err error) {
		if err == nil {
			texts := []string{}
			for _, endpoint := range status.LocalAddrs {
				texts = append(texts, endpoint.Addr.String())
			}
			n.endpoints.Store(&texts)
		}
	})
	n.engine.SetFilter(filter.NewAllowAllForTest(logger.Discard))
	n.stack, err = netstack.Create(logf, n.system.Tun.Get(), n.engine, n.system.MagicSock.Get(), n.system.Dialer.Get(),
		n.system.DNSManager.Get(), n.system.ProxyMapper())
	if err != nil {
		return nil, err
	}
	n.stack.ProcessLocalIPs = true
	n.stack.GetTCPHandlerForFlow = func(_, to netip.AddrPort) (func(net.Conn), bool) { return serve(to.Port()), true }
	if err := n.stack.Start(nil); err != nil {
		return nil, err
	}
	n.system.Tun.Get().Start()
	n.lookUp()
	n.engine.SetSelfNode(n.self.View())
	n.system.MagicSock.Get().SetDERPMap(relays)
	return n, n.engine.Reconfig(&wgcfg.Config{PrivateKey: private, Addresses: own}, &router.Config{LocalAddrs: own}, &dns.Config{})
}

func (n *Node) lookUp() {
	n.engine.SetPeerByIPPacketFunc(func(to netip.Addr) (key.NodePublic, bool) {
		other := n.other.Load()
		if other == nil || !other.Addresses[0].Contains(to) {
			return key.NodePublic{}, false
		}
		return other.Key, true
	})
	n.engine.SetPeerConfigFunc(func(whose key.NodePublic) ([]netip.Prefix, bool) {
		other := n.other.Load()
		if other == nil || whose != other.Key {
			return nil, false
		}
		return other.AllowedIPs, true
	})
	n.engine.SetPeerForIPFunc(func(of netip.Addr) (wgengine.PeerForIP, bool) {
		other := n.other.Load()
		switch {
		case other != nil && other.Addresses[0].Contains(of):
			return wgengine.PeerForIP{Node: other.View(), Route: other.Addresses[0]}, true
		case n.self.Addresses[0].Contains(of):
			return wgengine.PeerForIP{Node: n.self.View(), IsSelf: true, Route: n.self.Addresses[0]}, true
		}
		return wgengine.PeerForIP{}, false
	})
}

// Meet tells the node of its peer, or what is new of it.
func (n *Node) Meet(peer Peer) {
	address := []netip.Prefix{netip.PrefixFrom(peer.Address, peer.Address.BitLen())}
	other := &tailcfg.Node{
		ID: 2, Key: peer.Key, DiscoKey: peer.Disco, HomeDERP: peer.Home, Addresses: address, AllowedIPs: address,
		Endpoints: peer.Endpoints, Hostinfo: hostinfo,
	}
	n.other.Store(other)
	n.engine.SetSelfNode(n.self.View())
	n.system.MagicSock.Get().SetNetworkMap(n.self.View(), []tailcfg.NodeView{other.View()})
	n.stack.UpdateNetstackIPs(&netmap.NetworkMap{SelfNode: n.self.View()})
}

// Disco is its disco key.
func (n *Node) Disco() key.DiscoPublic { return n.system.MagicSock.Get().DiscoPublicKey() }

// Endpoints are where it may be reached; it knows some seconds after it began.
func (n *Node) Endpoints() []string { return *n.endpoints.Load() }

// Dial is a TCP connection to a port of the peer.
func (n *Node) Dial(port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	defer cancel()
	return n.stack.DialContextTCP(ctx, netip.AddrPortFrom(n.other.Load().Addresses[0].Addr(), port))
}

// DialUDP is a way for datagrams to a port of the peer.
func (n *Node) DialUDP(ctx context.Context, port uint16) (net.Conn, error) {
	return n.stack.DialContextUDP(ctx, netip.AddrPortFrom(n.other.Load().Addresses[0].Addr(), port))
}

// Ping asks the peer for a sign of life; the way it came by, "derp-900" or an address and port.
func (n *Node) Ping(kind tailcfg.PingType, limit time.Duration) (string, error) {
	answers := make(chan *ipnstate.PingResult, 1)
	n.engine.Ping(n.other.Load().Addresses[0].Addr(), kind, 0, func(answer *ipnstate.PingResult) { answers <- answer })
	select {
	case answer := <-answers:
		if answer.Err != "" {
			return "", errors.New(answer.Err)
		}
		if answer.Endpoint == "" {
			return "derp-" + strconv.Itoa(answer.DERPRegionID), nil
		}
		return answer.Endpoint, nil
	case <-time.After(limit):
		return "", errors.New("no pong")
	}
}

// IsRelayed tells whether a way is one by a relay.
func IsRelayed(way string) bool { return strings.HasPrefix(way, "derp-") }
