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
	address                  string
	seed                     string
	pid                      int
	agents, clients, tunnels int
	inflight                 int
	rate                     float64
	parallel                 int
	maps                     bool
	idle                     bool
	warmup, measure, settle  time.Duration
}

func parseOptions() (options, error) {
	var o options
	var server string
	flag.StringVar(&server, "url", "", "the coordinator: http://host:port")
	flag.StringVar(&o.seed, "seed", "", "JSON file with users and agents")
	flag.IntVar(&o.pid, "pid", 0, "the server's process, to read CPU and memory of it and its children; 0: do not")
	flag.IntVar(&o.agents, "agents", 200, "agents; the first ones of the seed")
	flag.IntVar(&o.clients, "clients", 200, "clients")
	flag.IntVar(&o.tunnels, "tunnels", 1, "tunnels of each client; more than one goes by the door for many agents")
	flag.IntVar(&o.inflight, "inflight", 64, "closed loop: updates on their way at any time")
	flag.Float64Var(&o.rate, "rate", 0, "open loop: updates per second over all peers; 0: closed loop")
	flag.IntVar(&o.parallel, "parallel", 32, "connections made at once")
	flag.BoolVar(&o.maps, "maps", false, "every peer holds a stream of DERP maps too, as genuine ones do")
	flag.BoolVar(&o.idle, "idle", false, "connect and measure memory only")
	flag.DurationVar(&o.warmup, "warmup", time.Second, "updates before the measured window")
	flag.DurationVar(&o.measure, "measure", 3*time.Second, "the measured window; 0: until stdin ends, with nothing measured")
	flag.DurationVar(&o.settle, "settle", 2*time.Second, "quiet time before memory is read")
	flag.Parse()
	parsed, err := url.Parse(server)
	if err != nil || parsed.Scheme != "http" {
		return o, errors.New("-url must be http://host:port")
	}
	o.address = parsed.Host
	if o.tunnels < 1 || o.tunnels > o.agents {
		return o, fmt.Errorf("-tunnels must be between 1 and -agents %d", o.agents)
	}
	return o, nil
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
