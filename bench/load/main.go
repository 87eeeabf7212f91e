// Command derpload drives any DERP v2 relay with raw frames and prints one JSON object of what it saw.
//
// It connects (idle clients first, then active ones), warms up, measures for a while, and waits for stragglers.
// With -pid it also reads the relay's CPU and memory from the kernel.  See bench/README.md.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

type options struct {
	url, scenario   string
	farURL          string
	pid, farPid     int
	pairs, senders  int
	size, frames    int
	window          int
	rate            float64
	idle, parallel  int
	warmup, measure time.Duration
	settle          time.Duration
	floor           bool
	slowStart       bool
	byLines         bool
	readRate        float64
	readBuffer      int
	sparse          int
	lag             time.Duration
}

func parseOptions() options {
	var o options
	flag.StringVar(&o.url, "url", "http://127.0.0.1:3340/derp", "relay: http, https, ws or wss")
	flag.StringVar(&o.scenario, "scenario", "pairs", "pairs, fanin, alltoall, slow (senders to one receiver on a narrow way), idle (only connect), or storm (-idle clients come back at once, with a line on standard input)")
	flag.IntVar(&o.pid, "pid", 0, "the relay's process, to read CPU and memory of it and its children; 0: do not")
	flag.StringVar(&o.farURL, "far-url", "", "pairs, fanin: receivers are clients of this relay, which is meshed with the first")
	flag.IntVar(&o.farPid, "far-pid", 0, "its process, counted with the first")
	flag.IntVar(&o.pairs, "pairs", 10, "pairs: how many; fanin: groups; alltoall: nodes")
	flag.IntVar(&o.senders, "senders", 8, "fanin: senders for each receiver")
	flag.IntVar(&o.size, "size", 1280, "packet size in bytes, 32 to 65536")
	flag.IntVar(&o.frames, "frames", 8, "frames per write")
	flag.IntVar(&o.window, "window", 0, "closed loop: packets in flight per sender; 0: 32 per receiver, which the genuine relay can queue")
	flag.Float64Var(&o.rate, "rate", 0, "open loop: packets per second over all senders; 0: closed loop")
	flag.IntVar(&o.idle, "idle", 0, "clients that connect first and then say nothing")
	flag.IntVar(&o.parallel, "parallel", 16, "connections made at once")
	flag.DurationVar(&o.warmup, "warmup", time.Second, "traffic before the measured window")
	flag.DurationVar(&o.measure, "measure", 3*time.Second, "the measured window")
	flag.DurationVar(&o.settle, "settle", time.Second, "quiet time before memory is read")
	flag.BoolVar(&o.floor, "floor", false, "the other end is bench/floor.py: no handshake, and nothing is routed")
	flag.BoolVar(&o.slowStart, "slow-start", false, "over TLS ask for the HTTP answer, as clients do that found no meta certificate")
	flag.BoolVar(&o.byLines, "by-lines", false, "the measured window begins and ends with a line on standard input")
	flag.Float64Var(&o.readRate, "read-rate", 0, "slow: bytes per second that the receiver takes; 0: all it can")
	flag.IntVar(&o.readBuffer, "read-buffer", 0, "the kernel's buffer of each receiver, in bytes; 0: what the system gives")
	flag.IntVar(&o.sparse, "sparse", 0, "slow: senders of a packet now and then, beside the others")
	flag.DurationVar(&o.lag, "lag", time.Second, "slow: how long the last sparse packets may take")
	flag.Parse()
	if o.window == 0 {
		switch o.scenario {
		case "fanin":
			o.window = max(32/o.senders, 1)
		case "alltoall":
			o.window = max(32/(2*o.pairs), 1)
		default:
			o.window = 32
		}
	}
	if o.rate == 0 && o.scenario != "alltoall" {
		o.frames = min(o.frames, o.window)
	}
	return o
}

// result is what is printed.  Microseconds and bytes unless the name says otherwise.
type result struct {
	Scenario string  `json:"scenario"`
	URL      string  `json:"url"`
	Pairs    int     `json:"pairs"`
	Senders  int     `json:"senders,omitempty"`
	Size     int     `json:"size"`
	Frames   int     `json:"frames_per_write"`
	Window   int     `json:"window"`
	Rate     float64 `json:"rate"`
	Idle     int     `json:"idle"`

	Connect *connectResult `json:"connect,omitempty"`
	Traffic *trafficResult `json:"traffic,omitempty"`
	Storm   *stormResult   `json:"storm,omitempty"`
	Slow    *slowResult    `json:"slow,omitempty"`
}

type connectResult struct {
	Count          int     `json:"count"`
	PerSecond      float64 `json:"per_second"`
	ServerCPU      float64 `json:"server_cpu_us"`
	GeneratorCPU   float64 `json:"generator_cpu_us"`
	BytesPerClient float64 `json:"bytes_per_client"`
	ResidentBefore int64   `json:"resident_before"`
	ResidentAfter  int64   `json:"resident_after"`
}

type trafficResult struct {
	Seconds          float64 `json:"seconds"`
	Sent             uint64  `json:"sent"`      // in the window
	Delivered        uint64  `json:"delivered"` // in the window
	PacketsPerSecond float64 `json:"packets_per_second"`
	MegabytesPerSec  float64 `json:"megabytes_per_second"`
	Lost             int64   `json:"lost"` // of the whole run
	Loss             float64 `json:"loss"` // Lost as a share of all that was sent
	Stalls           uint64  `json:"stalls"`

	Latency    *quantiles `json:"latency_us"`
	DueLatency *quantiles `json:"due_latency_us,omitempty"`

	ServerCPU      float64 `json:"server_cpu_us_per_packet"`
	ServerUser     float64 `json:"server_user_us_per_sent"` // in Python or Go alone, without the kernel
	ServerCores    float64 `json:"server_cores"`
	GeneratorCPU   float64 `json:"generator_cpu_us_per_packet"`
	GeneratorCores float64 `json:"generator_cores"`
}

func main() {
	o := parseOptions()
	raiseLimit()
	// Nothing is allocated per packet, so the collector only has to keep up with connects.
	debug.SetGCPercent(400)
	r, err := drive(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "derpload:", err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(r)
}

func drive(o options) (*result, error) {
	if o.size < stampBytes || o.size > 65536 || o.frames < 1 || o.pairs < 1 || o.senders < 1 {
		return nil, fmt.Errorf("size must be %d to 65536; frames, pairs and senders at least 1", stampBytes)
	}
	t, err := parseTarget(o.url, o.floor, o.slowStart)
	if err != nil {
		return nil, err
	}
	if err := t.learnKey(); err != nil {
		return nil, err
	}
	far := t
	if o.farURL != "" {
		if far, err = parseTarget(o.farURL, o.floor, o.slowStart); err != nil {
			return nil, err
		}
		if err := far.learnKey(); err != nil {
			return nil, err
		}
	}
	r := &result{
		Scenario: o.scenario, URL: o.url, Pairs: o.pairs, Size: o.size, Frames: o.frames, Window: o.window,
		Rate: o.rate, Idle: o.idle,
	}
	relay := process{o.pid, o.farPid}
	var idle []*link
	if o.scenario == "storm" {
		r.Storm, err = storm(t, o)
		return r, err
	}
	if o.idle > 0 {
		if idle, r.Connect, err = connectIdle(t, relay, o); err != nil {
			return nil, err
		}
	}
	var s *scene
	switch o.scenario {
	case "idle":
	case "slow":
		r.Senders = o.senders
		slow, err := newSlowScene(t, o)
		if err != nil {
			return nil, err
		}
		r.Slow, err = slow.measure(relay, o)
		return r, err
	case "pairs":
		s, err = fanInScene(t, far, o, 1)
	case "fanin":
		r.Senders = o.senders
		s, err = fanInScene(t, far, o, o.senders)
	case "alltoall":
		s, err = allToAllScene(t, o)
	default:
		err = fmt.Errorf("unknown scenario %q", o.scenario)
	}
	if err != nil {
		return nil, err
	}
	if s != nil {
		if far != t {
			time.Sleep(o.settle) // the first relay has to hear of the second one's clients
		}
		if r.Traffic, err = s.measure(relay, o); err != nil {
			return nil, err
		}
	}
	for _, l := range idle {
		l.nc.Close()
	}
	return r, nil
}
