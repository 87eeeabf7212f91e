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
	"syscall"
	"time"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"

	"interop-tailscaled/node"
)

const region = 900

func raw(text string) []byte {
	bytes, err := hex.DecodeString(text)
	if err != nil {
		log.Fatal(err)
	}
	return bytes
}

// family is an address if it is of this version of IP, and otherwise what a map says of one that is not there.
func family(address string, version int) string {
	if netip.MustParseAddr(address).Is4() == (version == 4) {
		return address
	}
	return "none"
}

// named is what stands in a URL for an address: one of IPv6 would need brackets there, which a map's names do not have.
func named(address string) string {
	if netip.MustParseAddr(address).Is6() {
		return "relay.test"
	}
	return address
}

// whole is the node and the orders that it obeys.
type whole struct {
	*node.Node
	peer node.Peer
}

// meet tells the node of its peer.
func (w *whole) meet(disco string, endpoints []string) {
	w.peer.Disco = key.DiscoPublicFromRaw32(mem.B(raw(disco)))
	for _, text := range endpoints {
		w.peer.Endpoints = append(w.peer.Endpoints, netip.MustParseAddrPort(text))
	}
	w.Meet(w.peer)
}

// exchange sends a datagram as often as it takes: one may be lost.
func (w *whole) exchange(port uint16, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := w.DialUDP(ctx, port)
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

func (w *whole) ping(kind string) result {
	way, err := w.Ping(tailcfg.PingType(kind), 2*time.Second)
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{OK: true, Text: way}
}

func (w *whole) obey(words []string) result {
	switch words[0] {
	case "peer":
		w.meet(words[1], words[2:])
		return result{OK: true}
	case "endpoints":
		return result{OK: true, Text: strings.Join(w.Endpoints(), " ")}
	case "ping":
		return w.ping(words[1])
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
		err = w.exchange(uint16(port), size)
	} else {
		err = run(w.Dial, words[0], uint16(port), size)
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
	stun := flag.Int("stun", -1, "its port for STUN, if it has one")
	here := flag.String("here", "", "its address in the tunnel")
	there := flag.String("there", "", "the address of the peer in the tunnel")
	flag.Parse()
	logf := logger.Discard
	if os.Getenv("WHOLENODE_LOG") != "" {
		logf = log.Printf
	}
	relay := &tailcfg.DERPNode{
		Name: "900a", RegionID: region, HostName: named(*host), IPv4: family(*host, 4), IPv6: family(*host, 6), DERPPort: *port,
		STUNPort: *stun, InsecureForTests: true,
	}
	relays := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{region: {
		RegionID: region, RegionCode: "test", Nodes: []*tailcfg.DERPNode{relay},
	}}}
	started, err := node.New(logf, key.NodePrivateFromRaw32(mem.B(raw(*private))), netip.MustParseAddr(*here), region, relays,
		func(port uint16) func(net.Conn) { return services[port] })
	if err != nil {
		log.Fatal(err)
	}
	w := &whole{started, node.Peer{
		Key: key.NodePublicFromRaw32(mem.B(raw(*peer))), Address: netip.MustParseAddr(*there), Home: region,
	}}
	output := json.NewEncoder(os.Stdout)
	output.Encode(result{OK: true, Text: hex.EncodeToString(w.Disco().AppendTo(nil))})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		began := time.Now()
		said := w.obey(strings.Fields(lines.Text()))
		said.Seconds = time.Since(began).Seconds()
		output.Encode(said)
	}
}
