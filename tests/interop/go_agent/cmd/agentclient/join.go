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

	"google.golang.org/protobuf/types/known/timestamppb"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"

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

func addressOf(id uuid.ID) netip.Addr {
	raw := [16]byte{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}
	copy(raw[6:], id[6:])
	return netip.AddrFrom16(raw)
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
	maps, err := rpc.StreamDERPMaps(ctx, &pb.StreamDERPMapsRequest{})
	if err != nil {
		return nil, err
	}
	first, err := maps.Recv()
	if err != nil {
		return nil, err
	}
	relays, home := relaysOf(first)
	private, here := key.NewNode(), addressOf(uuid.New())
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

func relaysOf(m *pb.DERPMap) (*tailcfg.DERPMap, int) {
	relays, home := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{}}, 0
	for number, region := range m.Regions {
		made := &tailcfg.DERPRegion{RegionID: int(number), RegionCode: region.RegionCode, RegionName: region.RegionName}
		for _, each := range region.Nodes {
			made.Nodes = append(made.Nodes, &tailcfg.DERPNode{
				Name: each.Name, RegionID: int(number), HostName: each.HostName, CertName: each.CertName, IPv4: each.Ipv4,
				IPv6: each.Ipv6, STUNPort: int(each.StunPort), STUNOnly: each.StunOnly, DERPPort: int(each.DerpPort),
				InsecureForTests: each.InsecureForTests, STUNTestIP: each.StunTestIp, CanPort80: each.CanPort_80,
			})
			if !each.StunOnly && (home == 0 || int(number) < home) {
				home = int(number)
			}
		}
		relays.Regions[int(number)] = made
	}
	return relays, home
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
	raw, err := m.private.Public().MarshalBinary()
	if err != nil {
		return err
	}
	prefixes := []string{netip.PrefixFrom(m.here, 128).String()}
	return m.calls.Send(&pb.CoordinateRequest{UpdateSelf: &pb.CoordinateRequest_UpdateSelf{Node: &pb.Node{
		Id: 1, AsOf: timestamppb.Now(), Key: raw, Disco: m.node.Disco().String(), PreferredDerp: int32(m.home),
		DerpLatency: map[string]float64{fmt.Sprintf("%d-v4", m.home): 0.001}, Addresses: prefixes, AllowedIps: prefixes,
		Endpoints: endpoints,
	}}})
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
				peer, err := peerOf(m.agent, update.Node)
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

func peerOf(id uuid.ID, described *pb.Node) (node.Peer, error) {
	peer := node.Peer{Address: addressOf(id), Home: int(described.PreferredDerp)}
	if err := peer.Key.UnmarshalBinary(described.Key); err != nil {
		return peer, err
	}
	if err := peer.Disco.UnmarshalText([]byte(described.Disco)); err != nil {
		return peer, err
	}
	if !slices.Contains(described.Addresses, netip.PrefixFrom(peer.Address, 128).String()) {
		return peer, fmt.Errorf("the agent has other addresses: %v", described.Addresses)
	}
	for _, text := range described.Endpoints {
		endpoint, err := netip.ParseAddrPort(text)
		if err != nil {
			return peer, err
		}
		peer.Endpoints = append(peer.Endpoints, endpoint)
	}
	return peer, nil
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
