package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"

	"interop-agent/described"
	"interop-tailscaled/node"
	"tailnetpeers/channel"
	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

const (
	joinLimit  = 30 * time.Second
	readyLimit = 5 * time.Second
)

// client is a node that has reached its agent, and what it has open there.
type client struct {
	node      *node.Node
	terminals map[string]*terminal
}

// join does what a client does, in its order: map, node, own node announced, tunnel asked for, the agent's node, its word that
// it knows us, and a ping through the tunnel.
func join(logf logger.Logf, url, token, agent string) (*client, error) {
	id, err := uuid.Parse(agent)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), joinLimit)
	defer cancel()
	door := url + "/api/v2/workspaceagents/" + agent + "/coordinate?version=2.3"
	socket, err := channel.DialWebsocket(ctx, door, http.Header{"Coder-Session-Token": {token}}, nil, 0)
	if err != nil {
		return nil, err
	}
	conn, err := channel.NewClient(socket)
	if err != nil {
		return nil, err
	}
	rpc := pb.NewDRPCTailnetClient(conn)
	relays, home, err := described.Relays(ctx, rpc)
	if err != nil {
		return nil, err
	}
	private, here := key.NewNode(), described.AddressOf(uuid.New())
	n, err := node.New(logf, private, here, home, relays, func(uint16) func(net.Conn) { return nil })
	if err != nil {
		return nil, err
	}
	calls, err := rpc.Coordinate(context.Background())
	if err != nil {
		return nil, err
	}
	m := &member{calls: calls, node: n, private: private, here: here, home: home, agent: id,
		met: make(chan struct{}, 1), ready: make(chan struct{}, 1), lost: make(chan error, 1)}
	if err := m.announce(nil); err != nil {
		return nil, err
	}
	if err := calls.Send(&pb.CoordinateRequest{AddTunnel: &pb.CoordinateRequest_Tunnel{Id: id[:]}}); err != nil {
		return nil, err
	}
	go m.hear()
	go m.announceEndpoints()
	if err := m.wait(ctx); err != nil {
		return nil, err
	}
	for ctx.Err() == nil {
		if _, err := n.Ping(tailcfg.PingTSMP, time.Second); err == nil {
			return &client{node: n, terminals: map[string]*terminal{}}, nil
		}
	}
	return nil, errors.New("the agent does not answer through the tunnel")
}

// member is the coordination of the node.
type member struct {
	calls      pb.DRPCTailnet_CoordinateClient
	node       *node.Node
	private    key.NodePrivate
	here       netip.Addr
	home       int
	agent      uuid.ID
	met, ready chan struct{}
	lost       chan error
}

func (m *member) announce(endpoints []string) error {
	own, err := described.Own(m.private, m.node.Disco(), m.here, m.home, endpoints)
	if err != nil {
		return err
	}
	return m.calls.Send(&pb.CoordinateRequest{UpdateSelf: &pb.CoordinateRequest_UpdateSelf{Node: own}})
}

// announceEndpoints tells where the node may be reached as often as that changes.
func (m *member) announceEndpoints() {
	var told []string
	for range time.Tick(200 * time.Millisecond) {
		if found := m.node.Endpoints(); !slices.Equal(found, told) {
			if told = found; m.announce(told) != nil {
				return
			}
		}
	}
}

func (m *member) hear() {
	for {
		response, err := m.calls.Recv()
		if err == nil && response.Error != "" {
			err = errors.New(response.Error)
		}
		if err != nil {
			m.lost <- err
			return
		}
		for _, update := range response.PeerUpdates {
			if id, err := uuid.FromBytes(update.Id); err != nil || id != m.agent {
				continue
			}
			switch update.Kind {
			case pb.CoordinateResponse_PeerUpdate_NODE:
				peer, err := described.Peer(update.Node)
				if err == nil && peer.Address != described.AddressOf(m.agent) {
					err = fmt.Errorf("the agent has other addresses: %v", update.Node.Addresses)
				}
				if err != nil {
					m.lost <- err
					return
				}
				m.node.Meet(peer)
				signal(m.met)
			case pb.CoordinateResponse_PeerUpdate_READY_FOR_HANDSHAKE:
				signal(m.ready)
			}
		}
	}
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// wait returns when the agent is met and knows us; an older one does not say so.
func (m *member) wait(ctx context.Context) error {
	select {
	case <-m.met:
	case err := <-m.lost:
		return err
	case <-ctx.Done():
		return errors.New("the agent is not there")
	}
	select {
	case <-m.ready:
		return nil
	case err := <-m.lost:
		return err
	case <-time.After(readyLimit):
		return errors.New("the agent did not say that it knows us")
	}
}
