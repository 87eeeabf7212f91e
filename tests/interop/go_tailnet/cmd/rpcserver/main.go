// Command rpcserver answers the client side of an RPC channel on the genuine layers: yamux and dRPC over TCP or stdio, no HTTP.
// Each RPC does one thing that a client must cope with; see the methods.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"storj.io/drpc/drpcerr"

	"tailnetpeers/channel"
	"tailnetpeers/proto/agentpb"
	pb "tailnetpeers/proto/tailnetpb"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to serve on; empty: stdin and stdout")
	flag.Parse()
	if *listen == "" {
		serve(stdio{os.Stdin, os.Stdout})
		return
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}

type stdio struct {
	io.ReadCloser
	out io.WriteCloser
}

func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

func (s stdio) Close() error { return errors.Join(s.ReadCloser.Close(), s.out.Close()) }

func serve(stream io.ReadWriteCloser) {
	session, err := channel.NewServerSession(stream)
	if err != nil {
		log.Print(err)
		return
	}
	mux := channel.NewMux()
	counters := &counters{hangUp: func() { session.Close() }, goAway: session.GoAway}
	mux.Register(&tailnetService{}, pb.DRPCTailnetDescription{})
	mux.Register(&agentService{counters: counters}, agentpb.DRPCAgentDescription{})
	channel.Serve(context.Background(), session, mux)
}

type tailnetService struct {
	pb.DRPCTailnetUnimplementedServer
}

// RefreshResumeToken answers the recorded exchange: token "T".
func (*tailnetService) RefreshResumeToken(context.Context, *pb.RefreshResumeTokenRequest) (*pb.RefreshResumeTokenResponse, error) {
	return &pb.RefreshResumeTokenResponse{Token: "T"}, nil
}

// PostTelemetry fails with a code and a text that both follow from the request.
func (*tailnetService) PostTelemetry(_ context.Context, req *pb.TelemetryRequest) (*pb.TelemetryResponse, error) {
	return nil, drpcerr.WithCode(fmt.Errorf("%d events", len(req.Events)), uint64(1000+len(req.Events)))
}

// Coordinate sends back every node, says "hi" to a tunnel, and ends on disconnect.
func (*tailnetService) Coordinate(stream pb.DRPCTailnet_CoordinateStream) error {
	defer stream.Close()
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		switch {
		case req.Disconnect != nil:
			return nil
		case req.AddTunnel != nil:
			err = stream.Send(&pb.CoordinateResponse{Error: "hi"})
		case req.UpdateSelf != nil:
			err = stream.Send(&pb.CoordinateResponse{PeerUpdates: []*pb.CoordinateResponse_PeerUpdate{{
				Id: make([]byte, 16), Node: req.UpdateSelf.Node, Kind: pb.CoordinateResponse_PeerUpdate_NODE,
			}}})
		}
		if err != nil {
			return err
		}
	}
}

// StreamDERPMaps sends three maps, of 0, 1 and 20,000 regions (more than one dRPC frame), and ends.
func (*tailnetService) StreamDERPMaps(_ *pb.StreamDERPMapsRequest, stream pb.DRPCTailnet_StreamDERPMapsStream) error {
	for _, count := range []int{0, 1, 20_000} {
		regions := map[int64]*pb.DERPMap_Region{}
		for id := range int64(count) {
			regions[id] = &pb.DERPMap_Region{RegionId: id}
		}
		if err := stream.Send(&pb.DERPMap{HomeParams: &pb.DERPMap_HomeParams{}, Regions: regions}); err != nil {
			return err
		}
	}
	return nil
}

// WorkspaceUpdates sends one update and then fails.
func (*tailnetService) WorkspaceUpdates(_ *pb.WorkspaceUpdatesRequest, stream pb.DRPCTailnet_WorkspaceUpdatesStream) error {
	if err := stream.Send(&pb.WorkspaceUpdate{}); err != nil {
		return err
	}
	return drpcerr.WithCode(errors.New("no more"), 7)
}

type counters struct {
	cancelled atomic.Int64
	hangUp    func()
	goAway    func() error
}

type agentService struct {
	agentpb.DRPCAgentUnimplementedServer
	*counters
}

// GetManifest answers with 3 MiB, beyond a stream's window and near the message cap.
func (*agentService) GetManifest(context.Context, *agentpb.GetManifestRequest) (*agentpb.Manifest, error) {
	return &agentpb.Manifest{Directory: strings.Repeat("d", 3<<20)}, nil
}

// BatchCreateLogs answers whether it got every log whole; each must be 1,000 characters of "x".
func (*agentService) BatchCreateLogs(_ context.Context, req *agentpb.BatchCreateLogsRequest) (*agentpb.BatchCreateLogsResponse, error) {
	for _, line := range req.Logs {
		if line.Output != strings.Repeat("x", 1000) {
			return nil, errors.New("a log came damaged")
		}
	}
	return &agentpb.BatchCreateLogsResponse{LogLimitExceeded: len(req.Logs) == 3000}, nil
}

// UpdateLifecycle repeats what it got, which may be nothing at all.
func (*agentService) UpdateLifecycle(_ context.Context, req *agentpb.UpdateLifecycleRequest) (*agentpb.Lifecycle, error) {
	if req.Lifecycle == nil {
		return &agentpb.Lifecycle{}, nil
	}
	return req.Lifecycle, nil
}

// CreateSubAgent never answers; it counts the calls that the client gave up.
func (a *agentService) CreateSubAgent(ctx context.Context, _ *agentpb.CreateSubAgentRequest) (*agentpb.CreateSubAgentResponse, error) {
	<-ctx.Done()
	a.cancelled.Add(1)
	return nil, ctx.Err()
}

// ListSubAgents answers with as many agents as calls were given up.
func (a *agentService) ListSubAgents(context.Context, *agentpb.ListSubAgentsRequest) (*agentpb.ListSubAgentsResponse, error) {
	out := &agentpb.ListSubAgentsResponse{}
	for range a.cancelled.Load() {
		out.Agents = append(out.Agents, &agentpb.SubAgent{})
	}
	return out, nil
}

// DeleteSubAgent ends the session instead of answering.
func (a *agentService) DeleteSubAgent(context.Context, *agentpb.DeleteSubAgentRequest) (*agentpb.DeleteSubAgentResponse, error) {
	go a.hangUp()
	return nil, errors.New("gone")
}

// UpdateAppStatus says that no new calls are taken, and answers.
func (a *agentService) UpdateAppStatus(context.Context, *agentpb.UpdateAppStatusRequest) (*agentpb.UpdateAppStatusResponse, error) {
	return &agentpb.UpdateAppStatusResponse{}, a.goAway()
}
