package main

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

// Sizes of the two buffers of each peer: requests wait for the core, responses wait for the network.
const (
	requestBuffer  = 32
	responseBuffer = 512
)

const (
	kindNode         = pb.CoordinateResponse_PeerUpdate_NODE
	kindDisconnected = pb.CoordinateResponse_PeerUpdate_DISCONNECTED
	kindLost         = pb.CoordinateResponse_PeerUpdate_LOST
	kindReady        = pb.CoordinateResponse_PeerUpdate_READY_FOR_HANDSHAKE
)

type (
	request  = pb.CoordinateRequest
	response = pb.CoordinateResponse
	update   = pb.CoordinateResponse_PeerUpdate
	idSet    map[uuid.ID]struct{}
)

// core knows who is connected, who has a tunnel to whom, and what each was told last.
// One goroutine per peer feeds it; one lock orders them.
type core struct {
	mu       sync.Mutex
	peers    map[uuid.ID]*peer
	outgoing map[uuid.ID]idSet // tunnels by source
	incoming map[uuid.ID]idSet // tunnels by destination
	overfull []*peer           // did not take their responses; removed before the lock is left
	closed   bool
}

type peer struct {
	core      *core
	id        uuid.ID
	rules     policy
	requests  chan *request
	responses chan *response
	node      *pb.Node
	sent      map[uuid.ID]*pb.Node
	gone      bool
}

func newCore() *core {
	return &core{peers: map[uuid.ID]*peer{}, outgoing: map[uuid.ID]idSet{}, incoming: map[uuid.ID]idSet{}}
}

// connect adds a peer. The caller feeds requests and closes the channel when the peer is gone; responses is closed by the core.
func (c *core) connect(ctx context.Context, id uuid.ID, rules policy) (chan<- *request, <-chan *response) {
	p := &peer{
		core: c, id: id, rules: rules,
		requests:  make(chan *request, requestBuffer),
		responses: make(chan *response, responseBuffer),
		sent:      map[uuid.ID]*pb.Node{},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		close(p.responses)
		p.gone = true
		return p.requests, p.responses
	}
	if old := c.peers[id]; old != nil {
		// Its tunnels and what others were told stay: for them this is the same peer.
		old.sendError("peer ID overwritten by new connection")
		old.end()
	}
	c.peers[id] = p
	var known []*update
	c.eachPartner(id, func(q *peer) {
		if q.node != nil && p.sent[q.id] == nil {
			known = append(known, &update{Id: q.id[:], Node: q.node, Kind: kindNode, Reason: "init"})
			p.sent[q.id] = q.node
		}
	})
	if len(known) > 0 {
		p.send(&response{PeerUpdates: known})
	}
	go c.follow(ctx, p)
	return p.requests, p.responses
}

func (c *core) follow(ctx context.Context, p *peer) {
	for {
		select {
		case req, ok := <-p.requests:
			if !ok {
				c.lose(p)
				return
			}
			if !c.apply(p, req) {
				return
			}
		case <-ctx.Done():
			c.lose(p)
			return
		}
	}
}

// apply serves one request and reports whether the peer lives on.
func (c *core) apply(p *peer, req *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.gone {
		return false
	}
	if err := p.rules.authorize(req); err != nil {
		p.sendError("authorization: " + err.Error())
		c.remove(p, kindLost, "lost")
		return false
	}
	if req.UpdateSelf != nil {
		p.node = req.UpdateSelf.Node
		c.eachPartner(p.id, func(q *peer) { c.tell(q, p, "node update") })
	}
	if req.AddTunnel != nil {
		c.addTunnel(p, uuid.ID(req.AddTunnel.Id))
	}
	if req.RemoveTunnel != nil {
		c.removeTunnel(p, uuid.ID(req.RemoveTunnel.Id))
	}
	if req.Disconnect != nil {
		c.remove(p, kindDisconnected, "graceful disconnect")
		return false
	}
	for _, ready := range req.ReadyForHandshake {
		c.readyForHandshake(p, uuid.ID(ready.Id))
	}
	c.sweep()
	return !p.gone
}

func (c *core) addTunnel(p *peer, destination uuid.ID) {
	insert(c.outgoing, p.id, destination)
	insert(c.incoming, destination, p.id)
	if q := c.peers[destination]; q != nil {
		c.tell(q, p, "add tunnel")
		c.tell(p, q, "add tunnel")
	}
}

func (c *core) removeTunnel(p *peer, destination uuid.ID) {
	if _, exists := c.outgoing[p.id][destination]; !exists {
		return
	}
	c.drop(p.id, destination)
	if q := c.peers[destination]; q != nil {
		q.forget(p.id, kindDisconnected, "remove tunnel")
	}
	p.forget(destination, kindDisconnected, "remove tunnel")
}

func (c *core) readyForHandshake(p *peer, destination uuid.ID) {
	_, out := c.outgoing[p.id][destination]
	_, in := c.incoming[p.id][destination]
	if !out && !in {
		p.sendError(fmt.Sprintf("ready for handshake error: you do not share a tunnel with %q", destination.String()))
		return
	}
	if q := c.peers[destination]; q != nil {
		q.send(&response{PeerUpdates: []*update{{Id: p.id[:], Kind: kindReady}}})
	}
}

// tell sends the node of about to receiver, unless it has it.
func (c *core) tell(receiver, about *peer, reason string) {
	if about.node == nil {
		return
	}
	if last := receiver.sent[about.id]; last != nil && proto.Equal(last, about.node) {
		return
	}
	receiver.sent[about.id] = about.node
	receiver.send(&response{PeerUpdates: []*update{{Id: about.id[:], Node: about.node, Kind: kindNode, Reason: reason}}})
}

func (c *core) lose(p *peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !p.gone {
		c.remove(p, kindLost, "lost")
	}
}

// remove ends a peer and tells its partners. Tunnels to it survive, so that it is announced again when it returns.
func (c *core) remove(p *peer, kind pb.CoordinateResponse_PeerUpdate_Kind, reason string) {
	p.end()
	if c.peers[p.id] == p {
		delete(c.peers, p.id)
		c.eachPartner(p.id, func(q *peer) { q.forget(p.id, kind, reason) })
		for destination := range c.outgoing[p.id] {
			c.drop(p.id, destination)
		}
	}
	c.sweep()
}

// sweep removes peers that did not take their responses, and those that this overfills in turn.
func (c *core) sweep() {
	for len(c.overfull) > 0 {
		p := c.overfull[0]
		c.overfull = c.overfull[1:]
		if !p.gone {
			c.remove(p, kindDisconnected, "failed update")
		}
	}
}

// eachPartner visits the connected peers at the other end of any tunnel; twice if there is one each way.
func (c *core) eachPartner(id uuid.ID, visit func(*peer)) {
	for other := range c.outgoing[id] {
		if q := c.peers[other]; q != nil {
			visit(q)
		}
	}
	for other := range c.incoming[id] {
		if q := c.peers[other]; q != nil {
			visit(q)
		}
	}
}

func (c *core) drop(source, destination uuid.ID) {
	erase(c.outgoing, source, destination)
	erase(c.incoming, destination, source)
}

// shutdown tells everyone that everyone is lost, never disconnected: live sessions must survive the coordinator.
func (c *core) shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, p := range c.peers {
		var lost []*update
		for other := range p.sent {
			lost = append(lost, &update{Id: other[:], Kind: kindLost, Reason: "coordinator close"})
		}
		if len(lost) > 0 {
			p.send(&response{PeerUpdates: lost})
		}
		p.end()
	}
	c.peers = map[uuid.ID]*peer{}
}

func (p *peer) send(r *response) {
	if p.gone {
		return
	}
	select {
	case p.responses <- r:
	default:
		p.core.overfull = append(p.core.overfull, p)
	}
}

func (p *peer) sendError(text string) {
	if p.gone {
		return
	}
	select {
	case p.responses <- &response{Error: text}:
	default: // best effort
	}
}

func (p *peer) forget(id uuid.ID, kind pb.CoordinateResponse_PeerUpdate_Kind, reason string) {
	if p.sent[id] == nil {
		return
	}
	delete(p.sent, id)
	p.send(&response{PeerUpdates: []*update{{Id: id[:], Kind: kind, Reason: reason}}})
}

func (p *peer) end() {
	if !p.gone {
		p.gone = true
		close(p.responses)
	}
}

func insert(sets map[uuid.ID]idSet, key, member uuid.ID) {
	if sets[key] == nil {
		sets[key] = idSet{}
	}
	sets[key][member] = struct{}{}
}

func erase(sets map[uuid.ID]idSet, key, member uuid.ID) {
	delete(sets[key], member)
	if len(sets[key]) == 0 {
		delete(sets, key)
	}
}
