package main

import (
	"errors"
	"fmt"
	"os"
)

// node is one client of the all-to-all scenario: it keeps `window` packets under way to every other node by
// answering each packet it receives, all answers to one read in one write.
//
// On the floor, which routes nothing, the nodes form a ring and answer whatever comes.
type node struct {
	run    *run
	link   *link
	id     uint32
	window int
	guard  guard
	peers  []peer // by id; the own entry is unused

	batch []byte
	owed  []uint64 // answers owed to each peer

	tally   tally
	latency histogram
}

type peer struct {
	public   [32]byte
	template template
	sent     uint64
	next     uint64 // number of the next packet expected from it
}

func (n *node) serve() {
	if err := n.loop(); err != nil {
		n.run.fail(fmt.Errorf("node %d: %w", n.id, err))
	}
}

func (n *node) loop() error {
	n.start()
	if err := n.answer(); err != nil {
		return err
	}
	var delivered uint64
	for {
		n.guard.renew(n.link)
		err := n.link.fill()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			n.tally.stalls.Add(1)
			n.guard.until = 0
			n.start()
		case err != nil:
			return err
		}
		got, err := n.take()
		if err != nil {
			return err
		}
		delivered += got
		n.tally.delivered.Store(delivered)
		if err := n.answer(); err != nil {
			return err
		}
	}
}

func (n *node) start() {
	for i := range n.peers {
		if uint32(i) != n.id {
			n.owed[i] = uint64(n.window)
		}
	}
}

func (n *node) take() (delivered uint64, err error) {
	now, measuring := nanotime(), n.run.measuring.Load()
	for {
		kind, payload, ok, err := n.link.frame()
		if err != nil || !ok {
			return delivered, err
		}
		if kind != frameRecvPacket && !(n.run.floor && kind == frameSendPacket) {
			n.link.other(kind, payload)
			continue
		}
		if len(payload) < keyBytes+stampBytes {
			return delivered, fmt.Errorf("a packet of %d bytes is none of ours", len(payload)-keyBytes)
		}
		s := readStamp(payload[keyBytes:])
		if int(s.src) >= len(n.peers) || (!n.run.floor && (s.dst != n.id || [32]byte(payload) != n.peers[s.src].public)) {
			return delivered, fmt.Errorf("got a packet from %d to %d", s.src, s.dst)
		}
		delivered++
		if n.run.floor {
			n.owed[(n.id+1)%uint32(len(n.peers))]++
		} else if p := &n.peers[s.src]; s.number >= p.next {
			n.owed[s.src] += s.number + 1 - p.next // a gap is a loss: its token goes back on the way
			p.next = s.number + 1
		}
		if measuring {
			n.latency.add(now - s.at)
		}
	}
}

func (n *node) answer() error {
	if n.run.stopping.Load() {
		return nil
	}
	now, sent := nanotime(), uint64(0)
	n.batch = n.batch[:0]
	for i := range n.peers {
		p := &n.peers[i]
		for ; n.owed[i] > 0; n.owed[i]-- {
			at := len(n.batch)
			n.batch = append(n.batch, p.template.wire...)
			p.template.put(n.batch[at:], stamp{n.id, uint32(i), p.sent, now, now})
			p.sent++
			sent++
		}
	}
	if sent == 0 {
		return nil
	}
	n.tally.sent.Add(sent)
	_, err := n.link.nc.Write(n.batch)
	return err
}
