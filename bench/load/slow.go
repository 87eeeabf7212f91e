package main

import (
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// segmentBytes is what the slow receiver lets the relay send at a time: a real way's, where loopback would take 64 KiB.
const segmentBytes = 1400

// A sparse sender's packet, and how many of them it sends a second: somebody who types, or a handshake.
const (
	sparseBytes     = 200
	sparsePerSecond = 4
)

// pacedConn reads no faster than its rate: the far end of a narrow way.
type pacedConn struct {
	net.Conn
	perSecond float64
	next      int64 // when the bytes read so far have come through
}

func (c *pacedConn) Read(b []byte) (int, error) {
	if wait := c.next - nanotime(); wait > 0 {
		time.Sleep(time.Duration(wait))
	}
	n, err := c.Conn.Read(b[:min(len(b), segmentBytes)])
	c.next = max(c.next, nanotime()-int64(2*time.Millisecond)) + int64(float64(n)*1e9/c.perSecond)
	return n, err
}

// dialer is how a client is dialled: some have a small buffer or a narrow way.
func (t *target) dialer() net.Dialer {
	d := net.Dialer{Timeout: dialDeadline}
	if t.readBuffer > 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, t.readBuffer)
				if t.readRate > 0 {
					syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, segmentBytes)
				}
			})
		}
	}
	return d
}

// slowResult is what came through the narrow way.  Latencies are since the write, in microseconds.
type slowResult struct {
	SparseSent    uint64     `json:"sparse_sent"`
	SparseLost    uint64     `json:"sparse_lost"`
	SparseLatency *quantiles `json:"sparse_latency_us"`
	BulkLatency   *quantiles `json:"bulk_latency_us"`
	Goodput       float64    `json:"goodput_bytes_per_second"` // of packets, without heads
	Jain          float64    `json:"jain"`                     // of the bulk senders' shares: 1 is equal
	ServerCPU     float64    `json:"server_cpu_us_per_sent"`
	ServerUser    float64    `json:"server_user_us_per_sent"`
}

// slowScene is one receiver on a narrow way, bulk senders that want more than it, and sparse ones beside them.
type slowScene struct {
	*run
	receiver   *link
	bulk       []*sender
	sparse     []*sender
	delivered  []atomic.Uint64 // by sender; of bulk senders since the window began
	sparseTime histogram
	bulkTime   histogram
	bytes      atomic.Uint64
}

func newSlowScene(t *target, o options) (*slowScene, error) {
	count := 1 + o.senders + o.sparse
	who, err := newIdentities(count, t.serverKey)
	if err != nil {
		return nil, err
	}
	narrow := *t
	narrow.readBuffer, narrow.readRate = o.readBuffer, o.readRate
	where := func(i int) *target {
		if i == 0 {
			return &narrow
		}
		return t
	}
	links, err := dialEach(where, who, o.parallel, nobody)
	if err != nil {
		return nil, err
	}
	s := &slowScene{receiver: links[0], delivered: make([]atomic.Uint64, count), run: newRun(o)}
	for i := 1; i < count; i++ {
		if i <= o.senders {
			s.bulk = append(s.bulk, newSender(links[i], uint32(i), 0, who[0].public, o.size, o.frames))
		} else {
			s.sparse = append(s.sparse, newSender(links[i], uint32(i), 0, who[0].public, sparseBytes, 1))
		}
		go links[i].drain()
	}
	s.receiver.grow()
	return s, nil
}

func (s *slowScene) receive() {
	for {
		if err := s.receiver.fill(); err != nil {
			s.fail(fmt.Errorf("the slow receiver: %w", err))
			return
		}
		now, measuring := nanotime(), s.measuring.Load()
		for {
			kind, payload, ok, err := s.receiver.frame()
			if err != nil {
				s.fail(err)
				return
			}
			if !ok {
				break
			}
			if kind != frameRecvPacket {
				s.receiver.other(kind, payload)
				continue
			}
			p := readStamp(payload[keyBytes:])
			isSparse := int(p.src) > len(s.bulk)
			if isSparse {
				s.delivered[p.src].Add(1)
			}
			if !measuring {
				continue
			}
			s.bytes.Add(uint64(len(payload) - keyBytes))
			if isSparse {
				s.sparseTime.add(now - p.at)
			} else {
				s.delivered[p.src].Add(1)
				s.bulkTime.add(now - p.at)
			}
		}
	}
}

// flood sends without a pause, or at its share of a rate.
func (s *slowScene) flood(one *sender, perSecond float64, sent *atomic.Uint64) {
	start := nanotime()
	for n := 0; !s.stopping.Load(); n++ {
		if perSecond > 0 {
			due := start + int64(float64(n*one.frames)*1e9/perSecond)
			if wait := due - nanotime(); wait > 0 {
				time.Sleep(time.Duration(wait))
			}
		}
		if err := one.write(0); err != nil {
			s.fail(fmt.Errorf("sender %d: %w", one.id, err))
			return
		}
		sent.Add(uint64(one.frames))
	}
}

// trickle sends one packet of each sparse sender in turn.  It begins with the window and ends before it does.
func (s *slowScene) trickle(until int64) {
	pause := time.Second / time.Duration(sparsePerSecond*max(len(s.sparse), 1))
	for n := 0; len(s.sparse) > 0 && nanotime() < until; n++ {
		if err := s.sparse[n%len(s.sparse)].write(0); err != nil {
			s.fail(fmt.Errorf("a sparse sender: %w", err))
			return
		}
		time.Sleep(pause)
	}
}

func (s *slowScene) measure(relay process, o options) (*slowResult, error) {
	var sent atomic.Uint64
	go s.receive()
	for _, one := range s.bulk {
		go s.flood(one, o.rate/float64(len(s.bulk)), &sent)
	}
	if err := s.wait(o.warmup); err != nil {
		return nil, err
	}
	sentBefore := sent.Load()
	cpuBefore, err := relay.cpu()
	if err != nil {
		return nil, err
	}
	userBefore := relay.user()
	s.measuring.Store(true)
	begin := time.Now()
	go s.trickle(nanotime() + int64(o.measure))
	if err := s.wait(o.measure); err != nil {
		return nil, err
	}
	seconds := time.Since(begin).Seconds()
	cpuAfter, err := relay.cpu()
	if err != nil {
		return nil, err
	}
	user, bulkSent := relay.user()-userBefore, sent.Load()-sentBefore
	r := &slowResult{Goodput: float64(s.bytes.Load()) / seconds}
	// Bulk goes on while the last sparse packets are on their way: a relay that holds them for long has not lost them.
	if err := s.wait(o.lag); err != nil {
		return nil, err
	}
	s.measuring.Store(false)
	s.stopping.Store(true)
	var sum, squares float64
	for i := range s.bulk {
		n := float64(s.delivered[i+1].Load())
		sum, squares = sum+n, squares+n*n
	}
	r.Jain = sum * sum / max(float64(len(s.bulk))*squares, 1)
	for _, one := range s.sparse {
		r.SparseSent += one.sent
		r.SparseLost += one.sent - s.delivered[one.id].Load()
	}
	r.SparseLatency, r.BulkLatency = s.sparseTime.quantiles(), s.bulkTime.quantiles()
	packets := max(float64(bulkSent), 1)
	r.ServerCPU, r.ServerUser = (cpuAfter-cpuBefore)/packets*1e6, user/packets*1e6
	return r, nil
}
