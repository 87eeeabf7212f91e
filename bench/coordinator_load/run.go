package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	connectLimit = 120 * time.Second // until everybody has everybody's node
	stallLimit   = 10 * time.Second  // without a single delivery
	drainLimit   = 5 * time.Second   // for what is on its way when the updates stop
)

// seed is the file of users and agents.
type seed struct {
	Users  []struct{ Token string }
	Agents []struct{ ID, Token string }
}

func readSeed(path string) (*seed, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s seed
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

func parseID(text string) ([16]byte, error) {
	var id [16]byte
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("not a UUID: %s", text)
	}
	copy(id[:], raw)
	return id, nil
}

// run is the state that all peers share. The first o.agents peers are agents.
type run struct {
	o     *options
	peers []*peer
	// fanout is how many receive an update of each peer; waiting is how many still have to.
	fanout  []int32
	waiting []atomic.Int32

	deliveries atomic.Uint64
	updates    atomic.Uint64
	others     atomic.Uint64 // updates of other kinds than NODE
	maps       atomic.Int64
	window     atomic.Pointer[histogram] // nil outside the measured window
	closedLoop atomic.Bool
	cursor     atomic.Uint64
	arrived    atomic.Int64 // updates that reached everybody, since the last ones were sent together

	over   atomic.Bool
	failed chan error
}

func (r *run) fail(err error) {
	select {
	case r.failed <- err:
	default:
	}
}

// delivered is called for each peer update that arrives, by the receiver's reader.
func (r *run) delivered(u update) {
	if u.kind != updateNode || u.sender < 0 || u.sender >= len(r.peers) {
		r.others.Add(1)
		return
	}
	if h := r.window.Load(); h != nil {
		h.add(wallNanos() - u.nanos)
	}
	r.deliveries.Add(1)
	if r.waiting[u.sender].Add(-1) == 0 && r.closedLoop.Load() && r.arrived.Add(1)%int64(r.o.batch) == 0 {
		for range r.o.batch {
			r.next()
		}
	}
}

// next sends an update of the next peer that has none on its way.
func (r *run) next() {
	for range r.peers {
		index := int(r.cursor.Add(1) % uint64(len(r.peers)))
		if r.fanout[index] > 0 && r.waiting[index].CompareAndSwap(0, r.fanout[index]) {
			r.send(index, wallNanos())
			return
		}
	}
}

func (r *run) send(index int, nanos int64) {
	r.updates.Add(1)
	if err := r.peers[index].update(nanos); err != nil && !r.over.Load() {
		r.fail(fmt.Errorf("peer %d: %w", index, err))
	}
}

func drive(o *options) (*result, error) {
	s, err := readSeed(o.seed)
	if err != nil {
		return nil, err
	}
	if len(s.Agents) < o.agents || len(s.Users) == 0 {
		return nil, fmt.Errorf("%s has %d agents, -agents wants %d", o.seed, len(s.Agents), o.agents)
	}
	count := o.agents + o.clients
	r := &run{
		o: o, peers: make([]*peer, count), fanout: make([]int32, count), waiting: make([]atomic.Int32, count),
		failed: make(chan error, 1),
	}
	out := &result{Agents: o.agents, Clients: o.clients, Tunnels: o.tunnels, Maps: o.maps}
	server := o.pids
	memory, cpu, own, start := server.resident(), server.cpu(), ownCPU(), time.Now()
	if err := r.connect(s); err != nil {
		return nil, err
	}
	defer r.close()
	out.Connect.Seconds = time.Since(start).Seconds()
	out.Connect.ServerCPU, out.Connect.GeneratorCPU = server.cpu()-cpu, ownCPU()-own
	time.Sleep(o.settle)
	out.Connect.BytesPerPeer = float64(server.resident()-memory) / float64(count)
	if o.idle {
		return out, r.anyFailure()
	}
	out.Traffic, err = r.traffic(server)
	return out, err
}

func (r *run) close() {
	r.over.Store(true)
	for _, p := range r.peers {
		if p != nil && p.conn != nil {
			p.conn.Close()
		}
	}
}

func (r *run) anyFailure() error {
	select {
	case err := <-r.failed:
		return err
	default:
		return nil
	}
}

// connect dials everybody, agents and clients mixed, and waits until 2 nodes were delivered for each tunnel.
func (r *run) connect(s *seed) error {
	o := r.o
	type dial struct {
		p           *peer
		address     string
		path, token string
		messages    [][]byte
	}
	var dials []dial
	for index := range r.peers {
		p := &peer{run: r, index: index, template: nodeTemplate(index)}
		r.peers[index] = p
		var tunnels [][]byte
		server, path, token := o.address, "/api/v2/workspaceagents/me/rpc?version=2.4", ""
		if index < o.agents {
			id, err := parseID(s.Agents[index].ID)
			if err != nil {
				return err
			}
			// An agent may have the address that follows from its id, and no other.
			address := fmt.Sprintf("fd7a:115c:a1e0:%x:%x:%x:%x:%x/128", id[6:8], id[8:10], id[10:12], id[12:14], id[14:16])
			p.addresses = appendBytes(appendBytes(nil, 8, []byte(address)), 9, []byte(address))
			token = s.Agents[index].Token
		} else {
			client := index - o.agents
			address := fmt.Sprintf("fd7a:115c:a1e0:ffff:%x:%x:1:1/128", client>>16&0xffff, client&0xffff)
			p.addresses = appendBytes(appendBytes(nil, 8, []byte(address)), 9, []byte(address))
			server, token = o.far, s.Users[0].Token
			path = "/api/v2/tailnet?version=2.3"
			for tunnel := range o.tunnels {
				agent := (client*o.tunnels + tunnel) % o.agents
				id, err := parseID(s.Agents[agent].ID)
				if err != nil {
					return err
				}
				tunnels = append(tunnels, appendTunnel(nil, id))
				r.fanout[agent]++
				if o.tunnels == 1 {
					path = "/api/v2/workspaceagents/" + s.Agents[agent].ID + "/coordinate?version=2.0"
				}
			}
			r.fanout[index] = int32(o.tunnels)
		}
		first := appendUpdate(nil, index, wallNanos(), p.addresses, p.template, &p.scratch)
		dials = append(dials, dial{p, server, path, token, append([][]byte{first}, tunnels...)})
	}
	for index := range r.peers {
		r.waiting[index].Store(r.fanout[index]) // each tunnel's ends have each other's first node to get
	}
	queue := make(chan dial)
	var workers sync.WaitGroup
	for range o.parallel {
		workers.Go(func() {
			for d := range queue {
				if err := d.p.dial(o, d.address, d.path, d.token, d.messages); err != nil {
					r.fail(fmt.Errorf("peer %d: %w", d.p.index, err))
				}
			}
		})
	}
	for i := range max(o.agents, o.clients) {
		if i < o.agents {
			queue <- dials[i]
		}
		if i < o.clients {
			queue <- dials[o.agents+i]
		}
	}
	close(queue)
	workers.Wait()
	want, give := uint64(2*o.clients*o.tunnels), time.Now().Add(connectLimit)
	for r.deliveries.Load() < want {
		if err := r.anyFailure(); err != nil {
			return err
		}
		if time.Now().After(give) {
			return fmt.Errorf("%d of %d first nodes arrived in %s", r.deliveries.Load(), want, connectLimit)
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (r *run) traffic(server process) (*trafficResult, error) {
	o := r.o
	stop := make(chan struct{})
	var pacing sync.WaitGroup
	if o.rate > 0 {
		pacing.Go(func() { r.pace(stop) })
	} else {
		r.closedLoop.Store(true)
		for range min(o.inflight, len(r.peers)) {
			r.next()
		}
	}
	if o.measure == 0 {
		fmt.Fprintln(os.Stderr, "running")
		io.Copy(io.Discard, os.Stdin)
		close(stop)
		return nil, r.anyFailure()
	}
	if err := r.watch(o.warmup); err != nil {
		return nil, err
	}
	measured := &histogram{}
	cpu, own, start := server.cpu(), ownCPU(), time.Now()
	deliveries, updates := r.deliveries.Load(), r.updates.Load()
	r.window.Store(measured)
	if err := r.watch(o.measure); err != nil {
		return nil, err
	}
	r.window.Store(nil)
	out := &trafficResult{
		Seconds: time.Since(start).Seconds(), Updates: r.updates.Load() - updates, Deliveries: r.deliveries.Load() - deliveries,
	}
	cpu, own = server.cpu()-cpu, ownCPU()-own
	out.PerSecond = float64(out.Deliveries) / out.Seconds
	out.ServerCPU, out.ServerCores = 1e6*cpu/float64(max(out.Deliveries, 1)), cpu/out.Seconds
	out.GeneratorCPU, out.GeneratorCores = 1e6*own/float64(max(out.Deliveries, 1)), own/out.Seconds
	out.Latency = measured.quantiles()
	r.closedLoop.Store(false)
	close(stop)
	pacing.Wait()
	out.OverdueAtTheEnd = r.drain()
	if others := r.others.Load(); others > 0 {
		lost := fmt.Errorf("%d peer updates were not nodes: the server lost peers that were there", others)
		return nil, errors.Join(lost, r.anyFailure())
	}
	return out, r.anyFailure()
}

// watch lets the time pass, and ends it when something failed or nothing moves.
func (r *run) watch(how time.Duration) error {
	end, moved, last := time.Now().Add(how), time.Now(), r.deliveries.Load()
	for time.Now().Before(end) {
		time.Sleep(min(10*time.Millisecond, time.Until(end)))
		if err := r.anyFailure(); err != nil {
			return err
		}
		if now := r.deliveries.Load(); now != last {
			last, moved = now, time.Now()
		} else if time.Since(moved) > stallLimit {
			return fmt.Errorf("nothing was delivered for %s", stallLimit)
		}
	}
	return nil
}

// pace sends at the rate, one peer after another. A stamp is the time at which the update was due, so that a server that makes
// the pacer wait does not look fast.
func (r *run) pace(stop <-chan struct{}) {
	start, sent := wallNanos(), 0.0
	for {
		select {
		case <-stop:
			return
		default:
		}
		now := wallNanos()
		due := float64(now-start) / 1e9 * r.o.rate
		if sent >= due {
			time.Sleep(time.Millisecond)
			continue
		}
		for sent < due {
			index := int(r.cursor.Add(1) % uint64(len(r.peers)))
			if r.fanout[index] == 0 {
				continue
			}
			r.waiting[index].Add(r.fanout[index])
			r.send(index, start+int64(sent/r.o.rate*1e9))
			sent++
		}
	}
}

// drain waits for what is on its way and returns what did not come.
func (r *run) drain() int64 {
	end := time.Now().Add(drainLimit)
	for {
		missing := int64(0)
		for i := range r.waiting {
			missing += int64(r.waiting[i].Load())
		}
		if missing == 0 || time.Now().After(end) {
			return missing
		}
		time.Sleep(5 * time.Millisecond)
	}
}
