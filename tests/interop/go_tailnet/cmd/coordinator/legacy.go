package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/types/known/timestamppb"
	"tailscale.com/types/key"

	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

// legacyNode is the JSON of the first protocol version: peers send one object, the server sends arrays, nothing is ever taken back.
type legacyNode struct {
	ID                  int64              `json:"id"`
	AsOf                time.Time          `json:"as_of"`
	Key                 key.NodePublic     `json:"key"`
	Disco               key.DiscoPublic    `json:"disco"`
	PreferredDERP       int32              `json:"preferred_derp"`
	DERPLatency         map[string]float64 `json:"derp_latency"`
	DERPForcedWebsocket map[int32]string   `json:"derp_forced_websockets"`
	Addresses           []string           `json:"addresses"`
	AllowedIPs          []string           `json:"allowed_ips"`
	Endpoints           []string           `json:"endpoints"`
}

func (n *legacyNode) toProto() (*pb.Node, error) {
	raw, err := n.Key.MarshalBinary()
	if err != nil {
		return nil, err
	}
	disco, err := n.Disco.MarshalText()
	return &pb.Node{
		Id: n.ID, AsOf: timestamppb.New(n.AsOf), Key: raw, Disco: string(disco), PreferredDerp: n.PreferredDERP,
		DerpLatency: n.DERPLatency, DerpForcedWebsocket: n.DERPForcedWebsocket,
		Addresses: n.Addresses, AllowedIps: n.AllowedIPs, Endpoints: n.Endpoints,
	}, err
}

func legacyFrom(n *pb.Node) (*legacyNode, error) {
	out := &legacyNode{
		ID: n.Id, AsOf: n.AsOf.AsTime(), PreferredDERP: n.PreferredDerp, DERPLatency: n.DerpLatency,
		DERPForcedWebsocket: n.DerpForcedWebsocket, Addresses: n.Addresses, AllowedIPs: n.AllowedIps, Endpoints: n.Endpoints,
	}
	return out, errors.Join(out.Key.UnmarshalBinary(n.Key), out.Disco.UnmarshalText([]byte(n.Disco)))
}

func (s *server) agentLegacy(w http.ResponseWriter, r *http.Request) {
	if agent := s.agentOf(w, r); agent != nil {
		s.serveLegacy(w, r, agent.ID, agentPolicy{agent.ID}, nil)
	}
}

// serveLegacy bridges a JSON peer to the core. A client's tunnel to its agent is implied by the URL.
func (s *server) serveLegacy(w http.ResponseWriter, r *http.Request, id uuid.ID, rules policy, tunnel *uuid.ID) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	s.sessions.Add(1)
	defer s.sessions.Done()
	defer conn.CloseNow()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream := websocket.NetConn(ctx, conn, websocket.MessageBinary)
	requests, responses := s.core.connect(ctx, id, rules)
	go func() {
		defer close(requests)
		if tunnel != nil {
			requests <- &request{AddTunnel: &pb.CoordinateRequest_Tunnel{Id: tunnel[:]}}
		}
		decoder := json.NewDecoder(stream)
		for {
			var node legacyNode
			if err := decoder.Decode(&node); err != nil {
				return
			}
			converted, err := node.toProto()
			if err != nil {
				return
			}
			select {
			case requests <- &request{UpdateSelf: &pb.CoordinateRequest_UpdateSelf{Node: converted}}:
			case <-ctx.Done():
				return
			}
		}
	}()
	encoder := json.NewEncoder(stream)
	for resp := range responses {
		nodes := []*legacyNode{}
		for _, u := range resp.PeerUpdates {
			if u.Kind != kindNode {
				continue
			}
			if node, err := legacyFrom(u.Node); err == nil {
				nodes = append(nodes, node)
			}
		}
		if len(nodes) > 0 && encoder.Encode(nodes) != nil {
			return
		}
	}
}
