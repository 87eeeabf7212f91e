package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	neturl "net/url"
	"slices"
	"sync"
	"time"

	"tailscale.com/types/key"

	"interop-agent/described"
	"interop-tailscaled/node"
	"tailnetpeers/channel"
	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

const dialLimit = 10 * time.Second

// member is an agent or its client: a node that outlives its connections to coordinators.
type member struct {
	pair     *pair
	agent    uuid.ID
	isClient bool
	token    string
	resume   string // makes a client the same peer again

	private key.NodePrivate
	here    netip.Addr
	home    int
	node    *node.Node
	knows   chan bool // closed when it knows its peer
	once    sync.Once

	// With the pair's lock.  What it last said of itself and heard of its peer by this connection are told by when that was
	// said, in ns; ours do not say when.
	isUp, isTold bool
	said, heard  int64
}

// run is connected for ever.
func (m *member) run() {
	for {
		logf("%v: %v", m.agent, m.serve())
		m.pair.mu.Lock()
		m.isUp = false
		m.pair.mu.Unlock()
		time.Sleep(100*time.Millisecond + rand.N(400*time.Millisecond))
	}
}

func (m *member) dial(ctx context.Context) (*channel.Client, error) {
	door, query := "/api/v2/workspaceagents/me/rpc", neturl.Values{"version": {"2.4"}}
	if m.isClient {
		door, query = "/api/v2/workspaceagents/"+m.agent.String()+"/coordinate", neturl.Values{"version": {"2.3"}}
		if m.resume != "" {
			query.Set("resume_token", m.resume)
		}
	}
	socket, err := channel.DialWebsocket(ctx, *url+door+"?"+query.Encode(), http.Header{"Coder-Session-Token": {m.token}}, nil, 0)
	if refused := (*channel.Refused)(nil); errors.As(err, &refused) && refused.Status == http.StatusUnauthorized {
		m.resume = ""
	}
	if err != nil {
		return nil, err
	}
	return channel.NewClient(socket)
}

// serve is one connection, from its dial to its end.
func (m *member) serve() error {
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	defer cancel()
	conn, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	rpc := pb.NewDRPCTailnetClient(conn)
	if m.isClient {
		refreshed, err := rpc.RefreshResumeToken(ctx, &pb.RefreshResumeTokenRequest{})
		if err != nil {
			return err
		}
		m.resume = refreshed.Token
	}
	if m.node == nil {
		if err := m.makeNode(ctx, rpc); err != nil {
			return err
		}
	}
	m.pair.mu.Lock()
	m.pair.dialled()
	m.isTold, m.heard = false, 0
	m.pair.mu.Unlock()
	calls, err := rpc.Coordinate(context.Background())
	if err != nil {
		return err
	}
	told := m.node.Endpoints()
	if err := m.announce(calls, told); err != nil {
		return err
	}
	if m.isClient {
		tunnel := &pb.CoordinateRequest_Tunnel{Id: m.agent[:]}
		if err := calls.Send(&pb.CoordinateRequest{AddTunnel: tunnel}); err != nil {
			return err
		}
	}
	go m.announceEndpoints(calls, told)
	return m.hear(calls)
}

func (m *member) makeNode(ctx context.Context, rpc pb.DRPCTailnetClient) error {
	relays, home, err := described.Relays(ctx, rpc)
	if err != nil {
		return err
	}
	m.private, m.home, m.here = key.NewNode(), home, described.AddressOf(m.agent)
	if m.isClient {
		m.here = described.AddressOf(uuid.New())
	}
	m.node, err = node.New(logf, m.private, m.here, home, relays, func(uint16) func(net.Conn) { return nil })
	return err
}

func (m *member) announce(calls pb.DRPCTailnet_CoordinateClient, endpoints []string) error {
	own, err := described.Own(m.private, m.node.Disco(), m.here, m.home, endpoints)
	if err != nil {
		return err
	}
	m.pair.mu.Lock()
	m.isUp, m.said = true, own.AsOf.AsTime().UnixNano()
	m.pair.mu.Unlock()
	return calls.Send(&pb.CoordinateRequest{UpdateSelf: &pb.CoordinateRequest_UpdateSelf{Node: own}})
}

// announceEndpoints tells where the node may be reached as often as that changes, for as long as the connection lasts.
func (m *member) announceEndpoints(calls pb.DRPCTailnet_CoordinateClient, told []string) {
	for calls.Context().Err() == nil {
		time.Sleep(200 * time.Millisecond)
		if found := m.node.Endpoints(); !slices.Equal(found, told) {
			if told = found; m.announce(calls, told) != nil {
				return
			}
		}
	}
}

func (m *member) hear(calls pb.DRPCTailnet_CoordinateClient) error {
	for {
		response, err := calls.Recv()
		if err == nil && response.Error != "" {
			err = errors.New(response.Error)
		}
		if err != nil {
			return err
		}
		for _, update := range response.PeerUpdates {
			if update.Kind == pb.CoordinateResponse_PeerUpdate_NODE {
				peer, err := described.Peer(update.Node)
				if err != nil {
					return err
				}
				m.node.Meet(peer)
				m.once.Do(func() { close(m.knows) })
			}
			m.note(update)
		}
	}
}

func (m *member) note(update *pb.CoordinateResponse_PeerUpdate) {
	m.pair.mu.Lock()
	defer m.pair.mu.Unlock()
	m.pair.kinds[update.Kind.String()]++
	if update.Kind == pb.CoordinateResponse_PeerUpdate_NODE {
		m.isTold, m.heard = true, update.Node.AsOf.AsTime().UnixNano()
		m.pair.look()
	}
}
