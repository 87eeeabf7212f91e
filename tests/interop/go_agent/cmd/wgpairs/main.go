// Command wgpairs is pairs of an agent and its client, coordinated by one URL, that send each other numbered packets
// through their tunnels while somebody does something to whoever serves there.  Each end is a whole genuine node; agents
// without a token are somebody else's.
//
// A client sends to a UDP port of its agent's machine, where this program listens, and what is there sends as much back.
// Ends dial their coordinator anew within half a second of losing it, as clients with their resume token.
//
// The first line on stdin lists the pairs, and is answered with one on stdout when all hear each other in the way that is
// wanted.  Each further line is an order, answered with a line:
//
//	begin   what is counted begins now
//	dials   how many dials have followed
//	met     waits until each two know where the other is now
//	heard   waits until each end has heard what was sent after this order
//	end     what was sent since and has not come 4 s later is lost
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"time"

	"tailscale.com/envknob"
	"tailscale.com/types/logger"
)

const (
	// Hang guard of each order.
	patience = 2 * time.Minute
	look     = 20 * time.Millisecond
	// A relay keeps packets for up to 3 s for whoever is on the way to another one.
	onTheWay = 4 * time.Second
)

var (
	url     = flag.String("url", "", "the coordinators'")
	relayed = flag.Bool("relayed", false, "no direct connections: by relays alone")
	period  = flag.Duration("period", 40*time.Millisecond, "between two packets in one direction")
)

var logf logger.Logf = logger.Discard

// result is what a pair saw between begin and end.
type result struct {
	Ours      bool    `json:"ours"` // the agent is somebody else's
	Way       string  `json:"way"`
	Sent      int     `json:"sent"`
	Lost      int     `json:"lost"`
	Twice     int     `json:"twice"`
	Late      int     `json:"late"` // came behind newer ones
	SilenceMS float64 `json:"silence_ms"`
}

type answer struct {
	OK    bool           `json:"ok"`
	Error string         `json:"error,omitempty"`
	Pairs []result       `json:"pairs,omitempty"`
	Kinds map[string]int `json:"kinds,omitempty"` // updates that all were told of, since they began
	Dials int            `json:"dials"`
	// Seconds after begin: the last dial, and when the last pair had met after its last dial.
	DialledAt float64 `json:"dialled_at"`
	MetAt     float64 `json:"met_at"`
}

type fleet struct {
	pairs []*pair
	began time.Time
}

// until waits for something of all pairs.
func (f *fleet) until(what string, holds func(*pair) bool) error {
	for give := time.Now().Add(patience); ; time.Sleep(look) {
		waiting := 0
		for _, p := range f.pairs {
			if !holds(p) {
				waiting++
			}
		}
		if waiting == 0 {
			return nil
		}
		if time.Now().After(give) {
			for _, p := range f.pairs {
				logf("%v", p)
			}
			return fmt.Errorf("%d of %d pairs: %s", waiting, len(f.pairs), what)
		}
	}
}

func (f *fleet) begin() {
	f.began = time.Now()
	for _, p := range f.pairs {
		p.begin()
	}
}

func (f *fleet) dials() (count int, last, met time.Time) {
	for _, p := range f.pairs {
		p.mu.Lock()
		for _, at := range p.dialledAt {
			if at.After(f.began) {
				count++
			}
			if at.After(last) {
				last = at
			}
		}
		if p.metAt.After(met) {
			met = p.metAt
		}
		p.mu.Unlock()
	}
	return count, last, met
}

func (f *fleet) end() answer {
	for _, p := range f.pairs {
		p.end()
	}
	time.Sleep(onTheWay)
	said := answer{Kinds: map[string]int{}}
	for _, p := range f.pairs {
		said.Pairs = append(said.Pairs, p.result())
		p.mu.Lock()
		for kind, count := range p.kinds {
			said.Kinds[kind] += count
		}
		p.mu.Unlock()
	}
	count, last, met := f.dials()
	said.Dials, said.DialledAt, said.MetAt = count, last.Sub(f.began).Seconds(), met.Sub(f.began).Seconds()
	return said
}

func (f *fleet) obey(order string) (answer, error) {
	switch order {
	case "begin":
		f.begin()
		return answer{}, nil
	case "dials":
		count, _, _ := f.dials()
		return answer{Dials: count}, nil
	case "met":
		return answer{}, f.until("they have not met", (*pair).haveMet)
	case "heard":
		for _, p := range f.pairs {
			p.there.expect()
			p.back.expect()
		}
		return answer{}, f.until("they do not hear each other any more", func(p *pair) bool {
			return p.there.hasHeard() && p.back.hasHeard()
		})
	case "end":
		return f.end(), nil
	}
	return answer{}, errors.New("no such order: " + order)
}

func (f *fleet) start(specs []spec) error {
	for _, each := range specs {
		p, err := newPair(each)
		if err != nil {
			return err
		}
		f.pairs = append(f.pairs, p)
		p.start()
	}
	return f.until(fmt.Sprintf("they do not hear each other, with relayed=%v", *relayed), (*pair).talks)
}

func main() {
	flag.Parse()
	log.SetOutput(io.Discard) // of nodes too
	if os.Getenv("WGPAIRS_LOG") != "" {
		log.SetOutput(os.Stderr)
		logf = log.Printf
	}
	// Asked for with each packet; peers are configured as soon as they are known.
	envknob.Setenv("TS_DEBUG_NEVER_DIRECT_UDP", strconv.FormatBool(*relayed))
	envknob.Setenv("TS_DEBUG_TRIM_WIREGUARD", "false")
	output, lines := json.NewEncoder(os.Stdout), bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	f := &fleet{}
	for started := false; lines.Scan(); started = true {
		var said answer
		var err error
		if started {
			said, err = f.obey(lines.Text())
		} else {
			var specs []spec
			if err = json.Unmarshal(lines.Bytes(), &specs); err == nil {
				err = f.start(specs)
			}
		}
		if said.OK = err == nil; err != nil {
			said.Error = err.Error()
		}
		output.Encode(said)
	}
}
