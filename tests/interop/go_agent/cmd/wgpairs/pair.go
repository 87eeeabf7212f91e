package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"tailscale.com/tailcfg"

	"interop-tailscaled/node"
	"tailnetpeers/uuid"
)

const packetBytes = 200

// spec is a pair as it is told of.
type spec struct {
	Agent       string `json:"agent"`       // its id
	AgentToken  string `json:"agent_token"` // none: it is somebody else's
	ClientToken string `json:"client_token"`
}

// lane is the packets of one direction.
type lane struct {
	mu       sync.Mutex
	sent     uint64
	arrived  map[uint64]int
	newest   uint64
	expected uint64
	last     time.Time
	from, to uint64 // what is counted; to is 0 while that goes on
	late     int
	longest  time.Duration
}

func newLane() *lane { return &lane{arrived: map[uint64]int{}} }

// send sends one after the other, for ever.
func (l *lane) send(write func([]byte)) {
	packet := make([]byte, packetBytes)
	for next := time.Now(); ; time.Sleep(time.Until(next)) {
		l.mu.Lock()
		binary.BigEndian.PutUint64(packet, l.sent)
		l.sent++
		l.mu.Unlock()
		write(packet)
		next = next.Add(*period)
	}
}

func (l *lane) note(packet []byte) {
	if len(packet) < 8 {
		return
	}
	number, now := binary.BigEndian.Uint64(packet), time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to == 0 {
		l.longest = max(l.longest, now.Sub(l.last))
	}
	l.last = now
	l.arrived[number]++
	if number < l.newest && number >= l.from {
		l.late++
	}
	l.newest = max(l.newest, number)
}

func (l *lane) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from, l.to, l.late, l.longest, l.last = l.sent, 0, 0, 0, time.Now()
}

func (l *lane) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = l.sent
	l.longest = max(l.longest, time.Since(l.last))
}

func (l *lane) hears() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.arrived) > 2 && time.Since(l.last) < time.Second
}

func (l *lane) expect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expected = l.sent
}

func (l *lane) hasHeard() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest >= l.expected
}

// sum adds what was seen to a result.
func (l *lane) sum(seen *result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for number := l.from; number < l.to; number++ {
		seen.Sent++
		switch times := l.arrived[number]; {
		case times == 0:
			seen.Lost++
			logf("lost: %d of %d to %d", number, l.from, l.to)
		case times > 1:
			seen.Twice++
		}
	}
	seen.Late += l.late
	seen.SilenceMS = max(seen.SilenceMS, float64(l.longest.Microseconds())/1000)
}

// pair is an agent, which may be elsewhere, and its client.
type pair struct {
	agent, client *member // agent: nil if it is elsewhere
	there, back   *lane
	far           *net.UDPConn // at a port of the agent's machine
	saysBack      sync.Once
	isReady       bool

	mu        sync.Mutex
	kinds     map[string]int
	dialledAt []time.Time
	metAt     time.Time // zero from a dial until they have met
}

func newPair(told spec) (*pair, error) {
	id, err := uuid.Parse(told.Agent)
	if err != nil {
		return nil, err
	}
	far, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	p := &pair{far: far, there: newLane(), back: newLane(), kinds: map[string]int{}}
	p.client = &member{pair: p, agent: id, isClient: true, token: told.ClientToken, knows: make(chan bool)}
	if told.AgentToken != "" {
		p.agent = &member{pair: p, agent: id, token: told.AgentToken, knows: make(chan bool)}
	}
	return p, nil
}

func (p *pair) start() {
	if p.agent != nil {
		go p.agent.run()
	}
	go p.client.run()
	go p.hearFar()
	go func() {
		<-p.client.knows
		near, err := p.client.node.DialUDP(context.Background(), uint16(p.far.LocalAddr().(*net.UDPAddr).Port))
		if err != nil {
			panic(err)
		}
		go p.there.send(func(packet []byte) { near.Write(packet) })
		packet := make([]byte, 2*packetBytes)
		for {
			// Errors are losses, which are counted.
			if length, err := near.Read(packet); err == nil {
				p.back.note(packet[:length])
			}
		}
	}()
}

// hearFar is what the agent's machine does: it sends back to where the first packet came from.
func (p *pair) hearFar() {
	packet := make([]byte, 2*packetBytes)
	for {
		length, from, err := p.far.ReadFromUDPAddrPort(packet)
		if err != nil {
			continue
		}
		p.there.note(packet[:length])
		p.saysBack.Do(func() { go p.back.send(func(packet []byte) { p.far.WriteToUDPAddrPort(packet, from) }) })
	}
}

// talks tells whether both hear each other in the way that is wanted; once they did, that is no matter any more.
func (p *pair) talks() bool {
	if !p.isReady && p.there.hears() && p.back.hears() {
		way, err := p.client.node.Ping(tailcfg.PingDisco, time.Second)
		p.isReady = err == nil && node.IsRelayed(way) == *relayed
	}
	return p.isReady
}

func (p *pair) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := fmt.Sprintf("%v: met %v, updates %v", p.client.agent, p.metAt, p.kinds)
	for _, m := range []*member{p.agent, p.client} {
		if m != nil {
			text += fmt.Sprintf(", up %v, said %d, heard %d", m.isUp, m.said, m.heard)
		}
	}
	return text
}

func (p *pair) haveMet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.metAt.IsZero()
}

// dialled is called with the pair's lock.
func (p *pair) dialled() {
	p.dialledAt = append(p.dialledAt, time.Now())
	p.metAt = time.Time{}
}

// look is called with the pair's lock, whenever one of the two has said or heard something.
func (p *pair) look() {
	met := p.client.isUp && p.client.isTold
	if p.agent != nil {
		met = met && p.agent.isUp && p.client.heard == p.agent.said && p.agent.heard == p.client.said
	}
	if met && p.metAt.IsZero() {
		p.metAt = time.Now()
	}
}

func (p *pair) begin() {
	p.there.begin()
	p.back.begin()
}

func (p *pair) end() {
	p.there.end()
	p.back.end()
}

func (p *pair) result() result {
	seen := result{Ours: p.agent == nil}
	p.there.sum(&seen)
	p.back.sum(&seen)
	seen.Way, _ = p.client.node.Ping(tailcfg.PingDisco, 2*time.Second)
	return seen
}
