package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// stalledAfter is how long a closed loop waits at most for a packet before it takes what is in flight for lost.
const stalledAfter = time.Second

// run is what all goroutines of a measurement share.
type run struct {
	measuring atomic.Bool // latencies count only inside the measured window
	stopping  atomic.Bool // nothing new is sent
	floor     bool
	failed    chan error
}

func newRun(o options) *run { return &run{floor: o.floor, failed: make(chan error, 1)} }

// fail ends the measurement with an error.  What fails because it is over is none.
func (r *run) fail(err error) {
	if r.stopping.Load() {
		return
	}
	select {
	case r.failed <- err:
	default:
	}
}

// wait lets the measurement go on for so long, or until something fails.
func (r *run) wait(d time.Duration) error {
	select {
	case err := <-r.failed:
		return err
	case <-time.After(d):
		return nil
	}
}

// tally is written by one goroutine and read by whoever measures; the padding keeps writers off each other's line.
type tally struct {
	sent, delivered, stalls atomic.Uint64
	_                       [104]byte
}

// guard ends a read that waits too long.  Setting a deadline costs as much as a packet, so it is renewed rarely.
type guard struct{ until int64 }

func (g *guard) renew(l *link) {
	if now := nanotime(); g.until-now < int64(stalledAfter)/2 {
		l.nc.SetReadDeadline(time.Now().Add(stalledAfter))
		g.until = now + int64(stalledAfter)
	}
}

// sender writes packets of one client to one receiver: `frames` per write, prepared once.
type sender struct {
	link     *link
	id, dst  uint32
	template template
	batch    []byte
	frames   int

	sent  uint64 // packets written, and the number of the next one
	acked uint64 // packets that arrived or are known to be lost
}

func newSender(l *link, id, dst uint32, to [32]byte, size, frames int) *sender {
	s := &sender{link: l, id: id, dst: dst, frames: frames, template: newTemplate(to, size, l.ws != nil)}
	for range frames {
		s.batch = append(s.batch, s.template.wire...)
	}
	return s
}

// write sends one batch.  due is when an open loop wanted it; 0 means now.
func (s *sender) write(due int64) error {
	now := nanotime()
	if due == 0 {
		due = now
	}
	step := len(s.template.wire)
	for i := range s.frames {
		s.template.put(s.batch[i*step:], stamp{s.id, s.dst, s.sent, due, now})
		s.sent++
	}
	_, err := s.link.nc.Write(s.batch)
	return err
}

// group is one receiver and those who send to it: a pair, or a fan-in.  Its goroutine reads the receiver and,
// in a closed loop, writes for the senders as their packets arrive: no other goroutine has to be woken.
type group struct {
	run     *run
	link    *link
	senders []*sender
	base    uint32 // id of the first sender
	id      uint32
	window  int // 0: open loop, somebody else writes
	guard   guard

	tally      tally
	latency    histogram // since the write
	dueLatency histogram // since the packet was due: what a stalled generator cannot hide
}

func (g *group) serve() {
	if err := g.loop(); err != nil {
		g.run.fail(err)
	}
}

func (g *group) loop() error {
	if err := g.refill(); err != nil {
		return err
	}
	var delivered uint64
	for {
		if g.window > 0 {
			g.guard.renew(g.link)
		}
		err := g.link.fill()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			g.tally.stalls.Add(1)
			for _, s := range g.senders {
				s.acked = s.sent
			}
			g.guard.until = 0
		case err != nil:
			return fmt.Errorf("receiver %d: %w", g.id, err)
		}
		n, err := g.take()
		if err != nil {
			return err
		}
		delivered += n
		g.tally.delivered.Store(delivered)
		if err := g.refill(); err != nil {
			return err
		}
	}
}

// take consumes the packets that one read brought.
func (g *group) take() (delivered uint64, err error) {
	now, measuring := nanotime(), g.run.measuring.Load()
	for {
		kind, payload, ok, err := g.link.frame()
		if err != nil || !ok {
			return delivered, err
		}
		if kind != frameRecvPacket && !(g.run.floor && kind == frameSendPacket) {
			g.link.other(kind, payload)
			continue
		}
		if len(payload) < keyBytes+stampBytes {
			return delivered, fmt.Errorf("a packet of %d bytes is none of ours", len(payload)-keyBytes)
		}
		p := readStamp(payload[keyBytes:])
		i := p.src - g.base
		if p.dst != g.id || i >= uint32(len(g.senders)) {
			return delivered, fmt.Errorf("receiver %d got a packet from %d to %d", g.id, p.src, p.dst)
		}
		s := g.senders[i]
		if !g.run.floor && [32]byte(payload) != s.link.identity.public {
			return delivered, fmt.Errorf("a packet of sender %d carries another source key", p.src)
		}
		if p.number >= s.acked {
			s.acked = p.number + 1
		}
		delivered++
		if measuring {
			g.latency.add(now - p.at)
			g.dueLatency.add(now - p.due)
		}
	}
}

// refill writes whole batches while the window has room for them.
func (g *group) refill() error {
	if g.window == 0 || g.run.stopping.Load() {
		return nil
	}
	var sent uint64
	for _, s := range g.senders {
		for int(s.sent-s.acked)+s.frames <= g.window {
			if err := s.write(0); err != nil {
				return fmt.Errorf("sender %d: %w", s.id, err)
			}
		}
		sent += s.sent
	}
	g.tally.sent.Store(sent)
	return nil
}

// pace writes one batch of each sender in turn at a steady rate of packets per second over all of them.
func pace(r *run, groups []*group, rate float64) {
	// A thread of its own with exact sleeps: the Go scheduler's timers wake a millisecond late when it is idle.
	runtime.LockOSThread()
	const prSetTimerslack = 29
	syscall.RawSyscall(syscall.SYS_PRCTL, prSetTimerslack, 1, 0)
	type lane struct {
		*group
		*sender
	}
	var lanes []lane
	for _, g := range groups {
		for _, s := range g.senders {
			lanes = append(lanes, lane{g, s})
		}
	}
	start := nanotime()
	frames := lanes[0].sender.frames
	for n := 0; !r.stopping.Load(); n++ {
		due := start + int64(float64(n*frames)*1e9/rate)
		if wait := due - nanotime(); wait > 0 {
			t := syscall.NsecToTimespec(wait)
			syscall.Nanosleep(&t, nil)
		}
		l := lanes[n%len(lanes)]
		if err := l.sender.write(due); err != nil {
			r.fail(fmt.Errorf("sender %d: %w", l.sender.id, err))
			return
		}
		l.tally.sent.Add(uint64(frames))
	}
}
