// Package described is nodes and relays as a coordinator describes them, and as a genuine node takes them.
package described

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/types/known/timestamppb"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"interop-tailscaled/node"
	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

// AddressOf is the address in the tunnel that follows from a peer's id.
func AddressOf(id uuid.ID) netip.Addr {
	raw := [16]byte{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}
	copy(raw[6:], id[6:])
	return netip.AddrFrom16(raw)
}

// Relays asks for the map; the relays in it, and the first region, where a node may be at home.
func Relays(ctx context.Context, rpc pb.DRPCTailnetClient) (*tailcfg.DERPMap, int, error) {
	maps, err := rpc.StreamDERPMaps(ctx, &pb.StreamDERPMapsRequest{})
	if err != nil {
		return nil, 0, err
	}
	first, err := maps.Recv()
	if err != nil {
		return nil, 0, err
	}
	relays, home := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{}}, 0
	for number, region := range first.Regions {
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
	return relays, home, nil
}

// Own is what a node says of itself.
func Own(private key.NodePrivate, disco key.DiscoPublic, here netip.Addr, home int, endpoints []string) (*pb.Node, error) {
	raw, err := private.Public().MarshalBinary()
	if err != nil {
		return nil, err
	}
	prefixes := []string{netip.PrefixFrom(here, 128).String()}
	return &pb.Node{
		Id: 1, AsOf: timestamppb.Now(), Key: raw, Disco: disco.String(), PreferredDerp: int32(home),
		DerpLatency: map[string]float64{fmt.Sprintf("%d-v4", home): 0.001}, Addresses: prefixes, AllowedIps: prefixes,
		Endpoints: endpoints,
	}, nil
}

// Peer is whom a node meets, at the first of the addresses that it is said to have.
func Peer(told *pb.Node) (node.Peer, error) {
	peer := node.Peer{Home: int(told.PreferredDerp)}
	if err := peer.Key.UnmarshalBinary(told.Key); err != nil {
		return peer, err
	}
	if err := peer.Disco.UnmarshalText([]byte(told.Disco)); err != nil {
		return peer, err
	}
	if len(told.Addresses) == 0 {
		return peer, errors.New("the peer has no address")
	}
	prefix, err := netip.ParsePrefix(told.Addresses[0])
	if err != nil {
		return peer, err
	}
	peer.Address = prefix.Addr()
	for _, text := range told.Endpoints {
		endpoint, err := netip.ParseAddrPort(text)
		if err != nil {
			return peer, err
		}
		peer.Endpoints = append(peer.Endpoints, endpoint)
	}
	return peer, nil
}
