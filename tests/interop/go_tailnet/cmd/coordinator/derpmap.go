package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"sync"
	"time"

	pb "tailnetpeers/proto/tailnetpb"
)

// mapPoll is how often the map file is looked at. The reference polls its own source every 5 s; tests want less.
const mapPoll = 200 * time.Millisecond

// derpMaps holds the current map and wakes who waits for the next.
type derpMaps struct {
	mu      sync.Mutex
	current *pb.DERPMap
	changed chan struct{}
}

// jsonMap is a map file: Go field names, as tailscale's own files have them.
type jsonMap struct {
	Regions map[int64]*struct {
		RegionID               int64
		RegionCode, RegionName string
		EmbeddedRelay, Avoid   bool
		Nodes                  []*struct {
			Name                           string
			RegionID                       int64
			HostName, CertName, IPv4, IPv6 string
			STUNPort, DERPPort             int32
			STUNOnly, InsecureForTests     bool
			ForceHTTP, CanPort80           bool
			STUNTestIP                     string
		}
	}
}

func newDerpMaps(path string) (*derpMaps, error) {
	d := &derpMaps{changed: make(chan struct{})}
	if path == "" {
		d.current = embeddedMap()
		return d, nil
	}
	stamp, err := d.read(path)
	if err != nil {
		return nil, err
	}
	go func() {
		for range time.Tick(mapPoll) {
			stat, err := os.Stat(path)
			if err != nil || stat.ModTime().Equal(stamp) {
				continue
			}
			if newer, err := d.read(path); err != nil {
				log.Printf("derp map kept, the new one is bad: %v", err)
			} else {
				stamp = newer
			}
		}
	}()
	return d, nil
}

// embeddedMap has the relay of this server as its only region.
func embeddedMap() *pb.DERPMap {
	return &pb.DERPMap{HomeParams: &pb.DERPMap_HomeParams{}, Regions: map[int64]*pb.DERPMap_Region{999: {
		RegionId: 999, EmbeddedRelay: true, RegionCode: "embedded", RegionName: "Embedded Relay",
		Nodes: []*pb.DERPMap_Region_Node{{Name: "999b", RegionId: 999, HostName: "127.0.0.1", StunPort: -1, ForceHttp: true}},
	}}}
}

func (d *derpMaps) read(path string) (time.Time, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	var file jsonMap
	if err := json.Unmarshal(text, &file); err != nil {
		return time.Time{}, err
	}
	merged := embeddedMap()
	for id, region := range file.Regions {
		if region == nil {
			delete(merged.Regions, id)
			continue
		}
		out := &pb.DERPMap_Region{
			RegionId: id, EmbeddedRelay: region.EmbeddedRelay, RegionCode: region.RegionCode,
			RegionName: region.RegionName, Avoid: region.Avoid,
		}
		for _, n := range region.Nodes {
			out.Nodes = append(out.Nodes, &pb.DERPMap_Region_Node{
				Name: n.Name, RegionId: id, HostName: n.HostName, CertName: n.CertName, Ipv4: n.IPv4, Ipv6: n.IPv6,
				StunPort: n.STUNPort, StunOnly: n.STUNOnly, DerpPort: n.DERPPort, InsecureForTests: n.InsecureForTests,
				ForceHttp: n.ForceHTTP, StunTestIp: n.STUNTestIP, CanPort_80: n.CanPort80,
			})
		}
		merged.Regions[id] = out
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current = merged
	close(d.changed)
	d.changed = make(chan struct{})
	return stat.ModTime(), nil
}

func (d *derpMaps) get() (*pb.DERPMap, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current, d.changed
}

// follow gives every map to send, the current one at once, until send fails or the context ends.
func (d *derpMaps) follow(ctx context.Context, send func(*pb.DERPMap) error) error {
	for {
		current, changed := d.get()
		if err := send(current); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
