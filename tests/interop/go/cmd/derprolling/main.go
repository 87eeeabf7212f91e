// Command derprolling has genuine clients talk in pairs through a region while somebody replaces its relays.
//
// Each client dials the nodes of the region in turn, begins with its own, and dials again 10 ms after it lost its relay,
// as magicsock does.  Each sends its partner a numbered packet every period.  The program writes one JSON line when all
// reach each other; the next line on stdin, or its end, stops it, and it writes what everybody saw.
//
// "refused" are packets that the genuine client itself would not send: the sender knows of them.
//
// With -websocket each client keeps to its own node, by its URL, since a genuine region client speaks websocket with port
// 443 only.  Built with the tag ts_debug_websockets and started with TS_DEBUG_DERP_WS_CLIENT=1 it does so.
//
// With -elsewhere a genuine netcheck looks every two seconds for the nearest of two regions, as a node does whose home
// is this region and which last heard of it when the first client did.  "home_moves": how often it chose another one.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"interop/release"
)

var (
	host      = flag.String("host", "localhost", "name of all nodes")
	address   = flag.String("address", "127.0.0.1", "where all nodes are")
	ports     = flag.String("ports", "", "the nodes' ports, with commas")
	count     = flag.Int("clients", 100, "clients, an even number")
	period    = flag.Duration("period", 20*time.Millisecond, "between two packets of a client")
	size      = flag.Int("size", 100, "bytes of a packet, 8 or more")
	sockets   = flag.Bool("websocket", false, "clients by URL, over websocket")
	stun      = flag.String("stun", "", "the nodes' STUN ports, with commas")
	elsewhere = flag.String("elsewhere", "", "port and STUN port of another region's node, with a comma")
)

var verbose = os.Getenv("VERBOSE") != ""

// logf is for people that look for what is lost.
func logf(format string, args ...any) {
	if verbose {
		log.Printf(format, args...)
	}
}

// magicsock's backoff begins with it.
const backOff = 10 * time.Millisecond

// client is one genuine client.
type client struct {
	dial    *derphttp.Client
	partner *client

	stop     atomic.Bool // it sends no more
	sent     int
	refused  map[uint64]bool
	connects atomic.Int64
	gone     atomic.Int64 // PeerGone of its partner

	mu       sync.Mutex
	arrived  map[uint64]int
	newest   uint64
	late     int // packets that came after a newer one
	last     time.Time
	longest  time.Duration // silence
	measures bool
}

func newClient(nodes []*tailcfg.DERPNode, first int) *client {
	turned := append(append([]*tailcfg.DERPNode{}, nodes[first:]...), nodes[:first]...)
	region := &tailcfg.DERPRegion{RegionID: 900, RegionCode: "test", Nodes: turned}
	dial := derphttp.NewRegionClient(
		key.NewNode(), logf, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region })
	if *sockets {
		url := fmt.Sprintf("wss://%s:%d/derp", turned[0].HostName, turned[0].DERPPort)
		byURL, err := derphttp.NewClient(key.NewNode(), url, logf, netmon.NewStatic())
		if err != nil {
			log.Fatal(err)
		}
		dial = byURL
	}
	return &client{dial: dial, refused: map[uint64]bool{}, arrived: map[uint64]int{}}
}

// home is where a node would have its home.
type home struct {
	reports, moves atomic.Int64
	stop           context.CancelFunc
}

// watchHome begins to look; it returns after the first report.
func watchHome(nodes []*tailcfg.DERPNode, heard *client) *home {
	ctx, cancel := context.WithCancel(context.Background())
	found := &home{stop: cancel}
	other := numbers(*elsewhere)
	asked := &tailcfg.DERPMap{Regions: map[release.RegionID]*tailcfg.DERPRegion{
		900: {RegionID: 900, RegionCode: "test", Nodes: nodes},
		901: {RegionID: 901, RegionCode: "other", Nodes: []*tailcfg.DERPNode{{
			Name: "901a", RegionID: 901, HostName: *host, IPv4: *address, IPv6: "none",
			DERPPort: other[0], STUNPort: other[1], InsecureForTests: true,
		}}},
	}}
	// Both are on this machine: whether the other answers a millisecond sooner says nothing of replacements.
	asked.HomeParams = &tailcfg.DERPHomeParams{RegionScore: map[release.RegionID]float64{901: 100}}
	looks := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: logf}
	if err := looks.Standalone(ctx, ":0"); err != nil {
		log.Fatal(err)
	}
	look := func() {
		report, err := looks.GetReport(ctx, asked, &netcheck.GetReportOpts{
			GetLastDERPActivity: func(region release.RegionID) time.Time {
				heard.mu.Lock()
				defer heard.mu.Unlock()
				if region != 900 {
					return time.Time{}
				}
				return heard.last
			},
		})
		if err != nil {
			return
		}
		logf("home is %d", report.PreferredDERP)
		if found.reports.Add(1) > 1 && report.PreferredDERP != 900 {
			found.moves.Add(1)
		}
	}
	look()
	go func() {
		for ctx.Err() == nil {
			time.Sleep(2 * time.Second)
			look()
		}
	}()
	return found
}

// numbers of a list with commas.
func numbers(list string) []int {
	found := []int{}
	for _, text := range strings.Split(list, ",") {
		number, err := strconv.Atoi(text)
		if err != nil {
			log.Fatal(err)
		}
		found = append(found, number)
	}
	return found
}

func (c *client) receive() {
	generation := 0
	for {
		message, now, err := c.dial.RecvDetail()
		if now != generation {
			logf("%v connected", c.dial.SelfPublicKey().ShortString())
			generation = now
			c.connects.Add(1)
		}
		if err != nil {
			if err == derphttp.ErrClientClosed {
				return
			}
			time.Sleep(backOff)
			continue
		}
		switch m := message.(type) {
		case derp.ReceivedPacket:
			if m.Source == c.partner.dial.SelfPublicKey() && len(m.Data) >= 8 {
				c.note(binary.BigEndian.Uint64(m.Data))
			}
		case derp.PeerGoneMessage:
			if m.Reason == derp.PeerGoneReasonDisconnected {
				c.gone.Add(1)
			}
		}
	}
}

func (c *client) note(number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.measures {
		c.longest = max(c.longest, now.Sub(c.last))
	}
	c.last = now
	c.arrived[number]++
	if number < c.newest {
		c.late++
	}
	c.newest = max(c.newest, number)
}

func (c *client) send() {
	packet := make([]byte, *size)
	next := time.Now()
	for number := uint64(0); !c.stop.Load(); number++ {
		binary.BigEndian.PutUint64(packet, number)
		c.sent++
		if err := c.dial.Send(c.partner.dial.SelfPublicKey(), packet); err != nil {
			c.refused[number] = true
		}
		next = next.Add(*period)
		time.Sleep(time.Until(next))
	}
}

// measure begins the count of silences anew.
func (c *client) measure() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measures, c.longest, c.last = true, 0, time.Now()
}

func (c *client) hears() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.arrived) > 2
}

// result sums everybody's up.  What was sent before a pair first heard each other is no loss of a replacement.
func result(clients []*client) map[string]any {
	var sent, lost, refused, twice, late, gone int
	var connects int64
	silences := []float64{}
	for _, c := range clients {
		from := c.partner
		first := uint64(from.sent)
		for number := range c.arrived {
			first = min(first, number)
		}
		for number := first; number < uint64(from.sent); number++ {
			sent++
			switch times := c.arrived[number]; {
			case times > 1:
				twice++
			case times == 0 && from.refused[number]:
				refused++
			case times == 0:
				lost++
				logf("lost: %d of %v to %v", number, from.dial.SelfPublicKey().ShortString(), c.dial.SelfPublicKey().ShortString())
			}
		}
		late += c.late
		gone += int(c.gone.Load())
		connects += c.connects.Load()
		silences = append(silences, float64(c.longest.Microseconds())/1000)
	}
	sort.Float64s(silences)
	at := func(share float64) float64 { return silences[min(int(share*float64(len(silences))), len(silences)-1)] }
	return map[string]any{
		"event": "result", "sent": sent, "lost": lost, "refused": refused, "twice": twice, "late": late, "gone": gone,
		"connects": connects, "silence_ms": map[string]float64{"p50": at(0.5), "p99": at(0.99), "max": at(1)},
	}
}

func say(o any) {
	line, err := json.Marshal(o)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func main() {
	flag.Parse()
	var nodes []*tailcfg.DERPNode
	for at, port := range numbers(*ports) {
		nodes = append(nodes, &tailcfg.DERPNode{
			Name: fmt.Sprintf("900%c", 'a'+at), RegionID: 900, HostName: *host, IPv4: *address, IPv6: "none",
			DERPPort: port, InsecureForTests: true,
		})
		if *stun != "" {
			nodes[at].STUNPort = numbers(*stun)[at]
		}
	}
	var clients []*client
	for number := range *count {
		clients = append(clients, newClient(nodes, number%len(nodes)))
	}
	for number, c := range clients {
		c.partner = clients[number^1]
	}
	var connecting sync.WaitGroup
	slots := make(chan bool, 32)
	for _, c := range clients {
		connecting.Add(1)
		go func() {
			defer connecting.Done()
			slots <- true
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := c.dial.Connect(ctx); err != nil {
				log.Fatal(err)
			}
			c.dial.NotePreferred(true)
		}()
	}
	connecting.Wait()
	var sending sync.WaitGroup
	for _, c := range clients {
		go c.receive()
		sending.Add(1)
		go func() { defer sending.Done(); c.send() }()
	}
	for _, c := range clients {
		for !c.hears() {
			time.Sleep(10 * time.Millisecond)
		}
	}
	watched := &home{stop: func() {}}
	if *elsewhere != "" {
		watched = watchHome(nodes, clients[0])
	}
	for _, c := range clients {
		c.measure()
	}
	say(map[string]string{"event": "ready"})
	bufio.NewReader(os.Stdin).ReadString('\n')
	for _, c := range clients {
		c.stop.Store(true)
	}
	sending.Wait()
	watched.stop()
	time.Sleep(time.Second) // what is on its way arrives
	for _, c := range clients {
		c.mu.Lock()
	}
	found := result(clients)
	found["reports"], found["home_moves"] = watched.reports.Load(), watched.moves.Load()
	say(found)
}
