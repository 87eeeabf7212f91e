// Command magicpeer is a genuine node without a tunnel device: magicsock finds the paths, wireguard-go seals the packets.
//
// stdin has one line per order: "peer DISCO ENDPOINT..." says who its one peer is, "send HEX" is a packet for it, "ping"
// asks how it is reached.  stdout: "disco HEX" first, "endpoint ADDR:PORT ..." whenever its own change, "packet HEX" for
// what came, "pong ADDR:PORT" or "pong derp-N".
package main

import (
	"bufio"
	"encoding/hex"
	"flag"
	"fmt"
	"log"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/tailscale/wireguard-go/device"
	"github.com/tailscale/wireguard-go/tun/tuntest"
	"go4.org/mem"
	"tailscale.com/health"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/util/eventbus"
	"tailscale.com/util/usermetric"
	"tailscale.com/wgengine/magicsock"
)

var output sync.Mutex

func say(format string, values ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Printf(format+"\n", values...)
}

func raw(text string) []byte {
	bytes, err := hex.DecodeString(text)
	if err != nil {
		log.Fatal(err)
	}
	return bytes
}

func main() {
	private := flag.String("private", "", "its node key, private, hex")
	peer := flag.String("peer", "", "the node key of its one peer, hex")
	host := flag.String("derp", "", "address of the relay of region 900")
	port := flag.Int("port", 0, "port of that relay, TLS")
	here := flag.String("here", "", "its address in the tunnel")
	there := flag.String("there", "", "the address of the peer in the tunnel")
	flag.Parse()

	bus := eventbus.New()
	logf := logger.Discard
	if os.Getenv("MAGICPEER_LOG") != "" {
		logf = log.Printf
	}
	monitor, err := netmon.New(bus, logf)
	if err != nil {
		log.Fatal(err)
	}
	socket, err := magicsock.NewConn(magicsock.Options{
		NetMon:            monitor,
		EventBus:          bus,
		Metrics:           new(usermetric.Registry),
		Logf:              logf,
		HealthTracker:     health.NewTracker(bus),
		DisablePortMapper: true,
		EndpointsFunc: func(endpoints []tailcfg.Endpoint) {
			var texts []string
			for _, endpoint := range endpoints {
				texts = append(texts, endpoint.Addr.String())
			}
			say("endpoint %s", strings.Join(texts, " "))
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	socket.SetDERPMap(&tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{900: {
		RegionID: 900, RegionCode: "test",
		Nodes: []*tailcfg.DERPNode{{
			Name: "900a", RegionID: 900, HostName: *host, IPv4: *host, IPv6: "none", DERPPort: *port, STUNPort: -1,
			InsecureForTests: true,
		}},
	}}})
	mine := key.NodePrivateFromRaw32(mem.B(raw(*private)))
	if err := socket.SetPrivateKey(mine); err != nil {
		log.Fatal(err)
	}
	tunnel := tuntest.NewChannelTUN()
	wireguard := device.NewDevice(tunnel.TUN(), socket.Bind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: logf})
	if err := wireguard.Up(); err != nil {
		log.Fatal(err)
	}
	disco := socket.DiscoPublicKey().AppendTo(nil)
	say("disco %x", disco)
	go func() {
		for packet := range tunnel.Inbound {
			say("packet %x", packet)
		}
	}()

	address, peerAddress := netip.PrefixFrom(netip.MustParseAddr(*here), 128), netip.PrefixFrom(netip.MustParseAddr(*there), 128)
	self := &tailcfg.Node{ID: 1, Key: mine.Public(), HomeDERP: 900, Addresses: []netip.Prefix{address}, AllowedIPs: []netip.Prefix{address}}
	var other *tailcfg.Node
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch words[0] {
		case "peer":
			other = &tailcfg.Node{
				ID: 2, Key: key.NodePublicFromRaw32(mem.B(raw(*peer))), DiscoKey: key.DiscoPublicFromRaw32(mem.B(raw(words[1]))),
				HomeDERP: 900, Addresses: []netip.Prefix{peerAddress}, AllowedIPs: []netip.Prefix{peerAddress},
				Hostinfo: (&tailcfg.Hostinfo{}).View(),
			}
			for _, text := range words[2:] {
				other.Endpoints = append(other.Endpoints, netip.MustParseAddrPort(text))
			}
			socket.SetNetworkMap(self.View(), []tailcfg.NodeView{other.View()})
			config := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s\n", *private, *peer, *peer, peerAddress)
			if err := wireguard.IpcSet(config); err != nil {
				log.Fatal(err)
			}
		case "send":
			tunnel.Outbound <- raw(words[1])
		case "ping":
			socket.Ping(other.View(), &ipnstate.PingResult{}, 0, func(result *ipnstate.PingResult) {
				if result.Endpoint != "" {
					say("pong %s", result.Endpoint)
				} else {
					say("pong derp-%d", result.DERPRegionID)
				}
			})
		default:
			log.Fatalf("no such order: %q", words[0])
		}
	}
}
