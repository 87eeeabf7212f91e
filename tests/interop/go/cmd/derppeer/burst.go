package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// minBurstBytes holds the mark and the packet's number.
const minBurstBytes = 16

// stalled is how long a burst waits for the next packet before it calls the rest lost.
const stalled = 3 * time.Second

// check takes the packets of one burst off the receiver: each must be the next one, whole.
type check struct {
	src  key.NodePublic
	mark uint64
	size int

	next    uint64
	arrived chan struct{} // one token per packet

	received, reordered, corrupt atomic.Int64
}

// fill writes packet number n: mark, number, then bytes that only this packet has.
func fill(b []byte, mark, n uint64) {
	binary.BigEndian.PutUint64(b, mark)
	binary.BigEndian.PutUint64(b[8:], n)
	rng := rand.New(rand.NewPCG(mark, n))
	for rest := b[minBurstBytes:]; len(rest) > 0; {
		var word [8]byte
		binary.BigEndian.PutUint64(word[:], rng.Uint64())
		rest = rest[copy(rest, word[:]):]
	}
}

// take reports whether m belongs to this burst; it runs in the receiver's read loop only.
func (c *check) take(m derp.ReceivedPacket) bool {
	if m.Source != c.src || len(m.Data) < minBurstBytes || binary.BigEndian.Uint64(m.Data) != c.mark {
		return false
	}
	n := binary.BigEndian.Uint64(m.Data[8:])
	if n < c.next {
		c.reordered.Add(1)
	}
	c.next = n + 1
	want := make([]byte, c.size)
	fill(want, c.mark, n)
	if string(want) != string(m.Data) {
		c.corrupt.Add(1)
	}
	c.received.Add(1)
	c.arrived <- struct{}{}
	return true
}

// burst sends Count packets from one client to another with at most Window in flight and checks each on arrival.
func burst(from, to *peer, r request) (object, error) {
	if r.Size < minBurstBytes || r.Count < 1 || r.Window < 1 {
		return nil, fmt.Errorf("a burst needs size >= %d, count >= 1 and window >= 1", minBurstBytes)
	}
	c := &check{
		src: from.client.SelfPublicKey(), mark: rand.Uint64(), size: r.Size,
		arrived: make(chan struct{}, r.Count),
	}
	to.mu.Lock()
	busy := to.burst != nil
	if !busy {
		to.burst = c
	}
	to.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("%s already receives a burst", to.name)
	}
	defer func() {
		to.mu.Lock()
		to.burst = nil
		to.mu.Unlock()
	}()
	dst, packet, inFlight := to.client.SelfPublicKey(), make([]byte, r.Size), 0
	timer := time.NewTimer(stalled)
	wait := func() bool {
		timer.Reset(stalled)
		select {
		case <-c.arrived:
			inFlight--
			return true
		case <-timer.C:
			return false
		}
	}
	sent, alive := 0, true
	for ; sent < r.Count && alive; sent++ {
		if inFlight >= r.Window && !wait() {
			alive = false
			break
		}
		fill(packet, c.mark, uint64(sent))
		if err := from.client.Send(dst, packet); err != nil {
			return nil, err
		}
		inFlight++
	}
	for inFlight > 0 && alive {
		alive = wait()
	}
	return object{
		"sent": sent, "received": c.received.Load(), "reordered": c.reordered.Load(), "corrupt": c.corrupt.Load(),
	}, nil
}
