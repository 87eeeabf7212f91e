package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// scene is a connected set of clients, ready to start.
type scene struct {
	run       *run
	groups    []*group
	nodes     []*node
	tallies   []*tally
	latencies []*histogram
	dues      []*histogram
}

func newScene(o options) *scene {
	return &scene{run: newRun(o)}
}

// dialAll makes count connections, several at once; next says whose bytes the floor passes to whom.
func dialAll(t *target, who []*identity, parallel int, next func(i int) (self, to int)) ([]*link, error) {
	return dialEach(func(int) *target { return t }, who, parallel, next)
}

// nobody is next where the floor passes nothing on, or is not what is dialled.
func nobody(int) (self, to int) { return -1, -1 }

// dialEach is dialAll with a relay for each.
func dialEach(
	where func(i int) *target, who []*identity, parallel int, next func(i int) (self, to int),
) ([]*link, error) {
	links := make([]*link, len(who))
	var taken atomic.Int64
	var once sync.Once
	var first error
	var group sync.WaitGroup
	for range min(parallel, len(who)) {
		group.Go(func() {
			for {
				i := int(taken.Add(1)) - 1
				if i >= len(who) {
					return
				}
				self, to := next(i)
				l, err := dial(where(i), who[i], self, to)
				if err != nil {
					once.Do(func() { first = fmt.Errorf("client %d of %d: %w", i, len(who), err) })
					taken.Store(int64(len(who)))
					return
				}
				links[i] = l
			}
		})
	}
	group.Wait()
	return links, first
}

// connectIdle measures what it costs the relay to take clients in and to keep them.
func connectIdle(t *target, relay process, o options) ([]*link, *connectResult, error) {
	who, err := newIdentities(o.idle, t.serverKey)
	if err != nil {
		return nil, nil, err
	}
	// A first client of this kind pays for what the relay loads or builds only once.
	warm, err := newIdentities(min(o.parallel, o.idle), t.serverKey)
	if err != nil {
		return nil, nil, err
	}
	warmLinks, err := dialAll(t, warm, o.parallel, nobody)
	if err != nil {
		return nil, nil, err
	}
	time.Sleep(o.settle)
	residentBefore, err := relay.resident()
	if err != nil {
		return nil, nil, err
	}
	cpuBefore, err := relay.cpu()
	if err != nil {
		return nil, nil, err
	}
	own, begin := ownCPU(), time.Now()
	links, err := dialAll(t, who, o.parallel, nobody)
	if err != nil {
		return nil, nil, err
	}
	seconds, ownAfter := time.Since(begin).Seconds(), ownCPU()
	for _, l := range links {
		l.release()
	}
	time.Sleep(o.settle)
	cpuAfter, err := relay.cpu()
	if err != nil {
		return nil, nil, err
	}
	residentAfter, err := relay.resident()
	if err != nil {
		return nil, nil, err
	}
	n := float64(o.idle)
	return append(links, warmLinks...), &connectResult{
		Count: o.idle, PerSecond: n / seconds,
		ServerCPU: (cpuAfter - cpuBefore) / n * 1e6, GeneratorCPU: (ownAfter - own) / n * 1e6,
		BytesPerClient: float64(residentAfter-residentBefore) / n,
		ResidentBefore: residentBefore, ResidentAfter: residentAfter,
	}, nil
}

// fanInScene connects groups of one receiver and some senders; with one sender a group is a pair.
// Receivers are clients of far, which may be the same relay.
func fanInScene(t, far *target, o options, senders int) (*scene, error) {
	count := o.pairs * (senders + 1)
	who, err := newIdentities(count, t.serverKey)
	if err != nil {
		return nil, err
	}
	narrow := *far
	narrow.readBuffer = o.readBuffer
	where := func(i int) *target {
		if i%(senders+1) == 0 {
			return &narrow
		}
		return t
	}
	if far != t {
		receivers, err := newIdentities(o.pairs, far.serverKey)
		if err != nil {
			return nil, err
		}
		for i, receiver := range receivers {
			who[i*(senders+1)] = receiver
		}
	}
	// In a group the receiver comes first, and the floor passes every sender's bytes to it.
	links, err := dialEach(where, who, o.parallel, func(i int) (int, int) {
		if i%(senders+1) == 0 {
			return i, -1
		}
		return i, i - i%(senders+1)
	})
	if err != nil {
		return nil, err
	}
	s := newScene(o)
	for first := 0; first < count; first += senders + 1 {
		receiver := links[first]
		receiver.grow()
		g := &group{run: s.run, link: receiver, id: uint32(first), base: uint32(first + 1), window: o.window}
		if o.rate > 0 {
			g.window = 0
		}
		for i := first + 1; i <= first+senders; i++ {
			g.senders = append(g.senders, newSender(links[i], uint32(i), g.id, who[first].public, o.size, o.frames))
		}
		s.groups = append(s.groups, g)
		s.tallies = append(s.tallies, &g.tally)
		s.latencies, s.dues = append(s.latencies, &g.latency), append(s.dues, &g.dueLatency)
	}
	return s, nil
}

func allToAllScene(t *target, o options) (*scene, error) {
	if o.pairs < 2 || o.rate > 0 {
		return nil, errors.New("alltoall needs -pairs (nodes) of at least 2 and is always a closed loop")
	}
	who, err := newIdentities(o.pairs, t.serverKey)
	if err != nil {
		return nil, err
	}
	links, err := dialAll(t, who, o.parallel, func(i int) (int, int) { return i, (i + 1) % o.pairs })
	if err != nil {
		return nil, err
	}
	s := newScene(o)
	for i, l := range links {
		l.grow()
		n := &node{
			run: s.run, link: l, id: uint32(i), window: o.window,
			peers: make([]peer, o.pairs), owed: make([]uint64, o.pairs),
		}
		for j := range n.peers {
			n.peers[j] = peer{public: who[j].public, template: newTemplate(who[j].public, o.size, t.websocket)}
		}
		s.nodes = append(s.nodes, n)
		s.tallies = append(s.tallies, &n.tally)
		s.latencies = append(s.latencies, &n.latency)
	}
	return s, nil
}

// reading is one look at all counters.
type reading struct {
	at                      time.Time
	server, own, user       float64
	sent, delivered, stalls uint64
}

func (s *scene) read(relay process) (reading, error) {
	r := reading{at: time.Now(), own: ownCPU()}
	for _, t := range s.tallies {
		r.sent += t.sent.Load()
		r.delivered += t.delivered.Load()
		r.stalls += t.stalls.Load()
	}
	var err error
	r.user = relay.user()
	r.server, err = relay.cpu()
	return r, err
}

func (s *scene) measure(relay process, o options) (*trafficResult, error) {
	for _, g := range s.groups {
		for _, sender := range g.senders {
			go sender.link.drain()
		}
		go g.serve()
	}
	for _, n := range s.nodes {
		go n.serve()
	}
	if o.rate > 0 {
		go pace(s.run, s.groups, o.rate)
	}
	if err := s.run.wait(o.warmup); err != nil {
		return nil, err
	}
	if o.byLines {
		fmt.Println("warm")
		if err := awaitLine(); err != nil {
			return nil, errors.New("standard input ended before the measured window")
		}
	}
	before, err := s.read(relay)
	if err != nil {
		return nil, err
	}
	s.run.measuring.Store(true)
	if err := s.window(o); err != nil {
		return nil, err
	}
	after, err := s.read(relay)
	if err != nil {
		return nil, err
	}
	s.run.measuring.Store(false)
	s.run.stopping.Store(true)
	end, err := s.stragglers(relay)
	if err != nil {
		return nil, err
	}
	return s.sum(o, before, after, end), nil
}

// window lasts as long as was asked for, or until the next line.
func (s *scene) window(o options) error {
	if !o.byLines {
		return s.run.wait(o.measure)
	}
	ended := make(chan error, 1)
	go func() { ended <- awaitLine() }()
	select {
	case err := <-s.run.failed:
		return err
	case err := <-ended:
		return err
	}
}

// stragglers waits until everything sent has arrived, or nothing has arrived for a while.
func (s *scene) stragglers(relay process) (reading, error) {
	var last reading
	for quiet := 0; quiet < 10; {
		time.Sleep(20 * time.Millisecond)
		now, err := s.read(relay)
		if err != nil {
			return now, err
		}
		quiet++
		if now.sent != last.sent || now.delivered != last.delivered {
			quiet = 0
		} else if now.delivered >= now.sent {
			return now, nil
		}
		last = now
	}
	return last, nil
}

func (s *scene) sum(o options, before, after, end reading) *trafficResult {
	var latency, due histogram
	for _, h := range s.latencies {
		latency.merge(h)
	}
	for _, h := range s.dues {
		due.merge(h)
	}
	seconds := after.at.Sub(before.at).Seconds()
	delivered := after.delivered - before.delivered
	n := max(float64(delivered), 1)
	lost := int64(end.sent) - int64(end.delivered)
	r := &trafficResult{
		Seconds: seconds, Sent: after.sent - before.sent, Delivered: delivered,
		PacketsPerSecond: float64(delivered) / seconds,
		MegabytesPerSec:  float64(delivered) * float64(o.size) / seconds / 1e6,
		Lost:             lost, Loss: float64(lost) / max(float64(end.sent), 1), Stalls: end.stalls,
		Latency:    latency.quantiles(),
		ServerUser: (after.user - before.user) / max(float64(after.sent-before.sent), 1) * 1e6,
		ServerCPU:  (after.server - before.server) / n * 1e6, ServerCores: (after.server - before.server) / seconds,
		GeneratorCPU: (after.own - before.own) / n * 1e6, GeneratorCores: (after.own - before.own) / seconds,
	}
	if o.rate > 0 {
		r.DueLatency = due.quantiles()
	}
	return r
}
