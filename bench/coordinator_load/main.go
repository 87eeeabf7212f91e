// Command coordinatorload drives a tailnet coordinator with agents and clients made of raw frames, and prints one JSON object.
//
// It connects everybody at once and waits until every tunnel's two ends have each other's node; lets the server rest and reads
// its memory; then sends updates, in a closed loop (-inflight updates at any time) or an open one (-rate), and tells deliveries,
// latency and the server's CPU. The seed file is that of `tailnet admin import`; its first user must own its agents.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"runtime/debug"
	"time"
)

type options struct {
	address, far             string
	seed                     string
	pids                     process
	agents, clients, tunnels int
	inflight, batch          int
	rate                     float64
	parallel                 int
	maps                     bool
	idle                     bool
	warmup, measure, settle  time.Duration
}

func parseOptions() (options, error) {
	var o options
	var server, far, pids string
	flag.StringVar(&server, "url", "", "the coordinator: http://host:port")
	flag.StringVar(&far, "far-url", "", "another one for the clients, if the two serve as one")
	flag.StringVar(&o.seed, "seed", "", "JSON file with users and agents")
	flag.StringVar(&pids, "pid", "", "processes that serve, 1,2, to read CPU and memory of them and their children")
	flag.IntVar(&o.agents, "agents", 200, "agents; the first ones of the seed")
	flag.IntVar(&o.clients, "clients", 200, "clients")
	flag.IntVar(&o.tunnels, "tunnels", 1, "tunnels of each client; more than one goes by the door for many agents")
	flag.IntVar(&o.inflight, "inflight", 64, "closed loop: updates on their way at any time")
	flag.IntVar(&o.batch, "batch", 1, "closed loop: updates that are sent together, when so many have arrived")
	flag.Float64Var(&o.rate, "rate", 0, "open loop: updates per second over all peers; 0: closed loop")
	flag.IntVar(&o.parallel, "parallel", 32, "connections made at once")
	flag.BoolVar(&o.maps, "maps", false, "every peer holds a stream of DERP maps too, as genuine ones do")
	flag.BoolVar(&o.idle, "idle", false, "connect and measure memory only")
	flag.DurationVar(&o.warmup, "warmup", time.Second, "updates before the measured window")
	flag.DurationVar(&o.measure, "measure", 3*time.Second, "the measured window; 0: until stdin ends, with nothing measured")
	flag.DurationVar(&o.settle, "settle", 2*time.Second, "quiet time before memory is read")
	flag.Parse()
	var err error
	if o.address, err = addressOf(server); err != nil {
		return o, err
	}
	if o.far = o.address; far != "" {
		if o.far, err = addressOf(far); err != nil {
			return o, err
		}
	}
	if o.pids, err = parseProcesses(pids); err != nil {
		return o, err
	}
	if o.batch < 1 || o.batch > o.inflight {
		return o, fmt.Errorf("-batch must be between 1 and -inflight %d", o.inflight)
	}
	if o.tunnels < 1 || o.tunnels > o.agents {
		return o, fmt.Errorf("-tunnels must be between 1 and -agents %d", o.agents)
	}
	return o, nil
}

func addressOf(text string) (string, error) {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Scheme != "http" {
		return "", errors.New("-url and -far-url must be http://host:port")
	}
	return parsed.Host, nil
}

// result is what is printed.
type result struct {
	Agents  int            `json:"agents"`
	Clients int            `json:"clients"`
	Tunnels int            `json:"tunnels"`
	Maps    bool           `json:"maps"`
	Connect connectResult  `json:"connect"`
	Traffic *trafficResult `json:"traffic,omitempty"`
}

type connectResult struct {
	Seconds      float64 `json:"seconds"` // until every tunnel's two ends have each other's node
	ServerCPU    float64 `json:"server_cpu_seconds"`
	GeneratorCPU float64 `json:"generator_cpu_seconds"`
	BytesPerPeer float64 `json:"bytes_per_peer"`
}

type trafficResult struct {
	Seconds         float64    `json:"seconds"`
	Updates         uint64     `json:"updates"`
	Deliveries      uint64     `json:"deliveries"`
	PerSecond       float64    `json:"deliveries_per_second"`
	ServerCPU       float64    `json:"server_cpu_us_per_delivery"`
	ServerCores     float64    `json:"server_cores"`
	GeneratorCPU    float64    `json:"generator_cpu_us_per_delivery"`
	GeneratorCores  float64    `json:"generator_cores"`
	Latency         *quantiles `json:"latency_us"`
	OverdueAtTheEnd int64      `json:"undelivered"`
}

func main() {
	o, err := parseOptions()
	if err == nil {
		raiseLimit()
		debug.SetGCPercent(400)
		var r *result
		if r, err = drive(&o); err == nil {
			json.NewEncoder(os.Stdout).Encode(r)
			return
		}
	}
	fmt.Fprintln(os.Stderr, "coordinatorload:", err)
	os.Exit(1)
}
