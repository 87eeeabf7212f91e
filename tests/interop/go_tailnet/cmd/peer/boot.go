package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"tailnetpeers/channel"
	"tailnetpeers/proto/agentpb"
	pb "tailnetpeers/proto/tailnetpb"
)

const (
	agentService   = "/coder.agent.v2.Agent/"
	tailnetService = "/coder.tailnet.v2.Tailnet/"
)

// boot walks an agent's start: what starts together starts together, each RPC on its own stream, and any error tears the
// connection down. Reply: the manifest and the RPCs in the order of their answers. The coordination stream is then "coordinate",
// the map stream "derp_maps".
func boot(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		Minor int
		Node  json.RawMessage
	}](raw)
	if err != nil {
		return nil, err
	}
	client, err := p.session()
	if err != nil {
		return nil, err
	}
	b := &booting{peer: p, client: client, ctx: ctx, manifest: &agentpb.Manifest{}}
	if err := b.run(arguments.Minor, arguments.Node); err != nil {
		client.Close()
		return nil, fmt.Errorf("torn down: %w", err)
	}
	return fields{"manifest": toJSON(b.manifest), "answered": b.answered}, nil
}

type booting struct {
	peer     *peer
	client   *channel.Client
	ctx      context.Context
	manifest *agentpb.Manifest

	mu       sync.Mutex
	answered []string
}

func (b *booting) invoke(rpc string, request, response proto.Message) error {
	if err := b.client.Invoke(b.ctx, agentService+rpc, encoding{}, request, response); err != nil {
		return fmt.Errorf("%s: %w", rpc, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answered = append(b.answered, rpc)
	return nil
}

func (b *booting) run(minor int, node json.RawMessage) error {
	lifecycle := func(state agentpb.Lifecycle_State) error {
		request := &agentpb.UpdateLifecycleRequest{Lifecycle: &agentpb.Lifecycle{State: state, ChangedAt: timestamppb.Now()}}
		response := &agentpb.Lifecycle{}
		if err := b.invoke("UpdateLifecycle", request, response); err != nil {
			return err
		}
		if response.State != state {
			return fmt.Errorf("UpdateLifecycle answered %s to %s", response.State, state)
		}
		return nil
	}
	together := []func() error{
		func() error {
			return b.invoke("BatchCreateLogs", &agentpb.BatchCreateLogsRequest{
				LogSourceId: make([]byte, 16),
				Logs:        []*agentpb.Log{{CreatedAt: timestamppb.Now(), Output: "hello", Level: agentpb.Log_INFO}},
			}, &agentpb.BatchCreateLogsResponse{})
		},
		func() error { return lifecycle(agentpb.Lifecycle_CREATED) },
		func() error {
			return b.invoke("BatchUpdateMetadata", &agentpb.BatchUpdateMetadataRequest{}, &agentpb.BatchUpdateMetadataResponse{})
		},
		func() error {
			if err := b.invoke("GetManifest", &agentpb.GetManifestRequest{}, b.manifest); err != nil {
				return err
			}
			return checkManifest(b.manifest)
		},
	}
	if minor == 0 {
		together = append(together, func() error {
			return b.invoke("GetServiceBanner", &agentpb.GetServiceBannerRequest{}, &agentpb.ServiceBanner{})
		})
	} else {
		together = append(together, func() error {
			return b.invoke("GetAnnouncementBanners", &agentpb.GetAnnouncementBannersRequest{}, &agentpb.GetAnnouncementBannersResponse{})
		})
	}
	if minor >= 4 {
		together = append(together, b.monitoring, func() error {
			return b.invoke("ReportConnection", &agentpb.ReportConnectionRequest{Connection: &agentpb.Connection{
				Id: make([]byte, 16), Action: agentpb.Connection_CONNECT, Type: agentpb.Connection_SSH, Timestamp: timestamppb.Now(), Ip: "127.0.0.1",
			}}, &emptypb.Empty{})
		})
	}
	if err := concurrently(together); err != nil {
		return err
	}
	startup := &agentpb.Startup{Version: "v2.20.0", ExpandedDirectory: "/home/agent"}
	if err := b.invoke("UpdateStartup", &agentpb.UpdateStartupRequest{Startup: startup}, &agentpb.Startup{}); err != nil {
		return err
	}
	if err := lifecycle(agentpb.Lifecycle_STARTING); err != nil {
		return err
	}
	if minor >= 3 && len(b.manifest.Scripts) > 0 {
		timing := &agentpb.Timing{ScriptId: b.manifest.Scripts[0].Id, Start: timestamppb.Now(), End: timestamppb.Now()}
		if err := b.invoke("ScriptCompleted", &agentpb.WorkspaceAgentScriptCompletedRequest{Timing: timing}, &agentpb.WorkspaceAgentScriptCompletedResponse{}); err != nil {
			return err
		}
	}
	if err := lifecycle(agentpb.Lifecycle_READY); err != nil {
		return err
	}
	if err := b.invoke("BatchUpdateAppHealths", &agentpb.BatchUpdateAppHealthRequest{}, &agentpb.BatchUpdateAppHealthResponse{}); err != nil {
		return err
	}
	return concurrently([]func() error{
		func() error { return b.coordinate(node) },
		b.derpMaps,
		b.stats,
	})
}

func (b *booting) monitoring() error {
	response := &agentpb.GetResourcesMonitoringConfigurationResponse{}
	if err := b.invoke("GetResourcesMonitoringConfiguration", &agentpb.GetResourcesMonitoringConfigurationRequest{}, response); err != nil {
		return err
	}
	if response.Config == nil {
		return errors.New("GetResourcesMonitoringConfiguration answered without a config")
	}
	return nil
}

func (b *booting) coordinate(extra json.RawMessage) error {
	stream, err := newStream(b.client, tailnetService+"Coordinate")
	if err != nil {
		return err
	}
	node, err := b.peer.ownNode(extra)
	if err != nil {
		return err
	}
	request := &pb.CoordinateRequest{UpdateSelf: &pb.CoordinateRequest_UpdateSelf{Node: node}}
	if err := stream.MsgSend(request, encoding{}); err != nil {
		return err
	}
	b.keep("coordinate", stream, func() proto.Message { return &pb.CoordinateResponse{} })
	return nil
}

func (b *booting) derpMaps() error {
	stream, err := newStream(b.client, tailnetService+"StreamDERPMaps")
	if err != nil {
		return err
	}
	if err := stream.MsgSend(&pb.StreamDERPMapsRequest{}, encoding{}); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	first := &pb.DERPMap{}
	if err := stream.MsgRecv(first, encoding{}); err != nil {
		return fmt.Errorf("StreamDERPMaps: %w", err)
	}
	if err := checkMap(first); err != nil {
		return err
	}
	b.peer.event("message", fields{"stream": "derp_maps", "message": toJSON(first)})
	b.keep("derp_maps", stream, func() proto.Message { return &pb.DERPMap{} })
	return nil
}

// stats asks for the interval with an empty report first, as an agent does, and then reports once.
func (b *booting) stats() error {
	for _, stats := range []*agentpb.Stats{nil, {ConnectionCount: 1, RxPackets: 1, TxPackets: 1, SessionCountSsh: 1}} {
		response := &agentpb.UpdateStatsResponse{}
		if err := b.invoke("UpdateStats", &agentpb.UpdateStatsRequest{Stats: stats}, response); err != nil {
			return err
		}
		// The agent takes the value unchecked as a timer's period; nought would be a panic.
		if response.ReportInterval.AsDuration() <= 0 {
			return errors.New("UpdateStats answered without an interval")
		}
	}
	return nil
}

func (b *booting) keep(name string, stream *openedStream, makeResponse func() proto.Message) {
	b.peer.mu.Lock()
	b.peer.streams[name] = stream
	b.peer.mu.Unlock()
	go b.peer.receive(stream, name, makeResponse)
}

func checkManifest(m *agentpb.Manifest) error {
	switch {
	case len(m.AgentId) != 16 || strings.Trim(string(m.AgentId), "\x00") == "":
		return fmt.Errorf("manifest: agent_id %x", m.AgentId)
	case len(m.WorkspaceId) != 16:
		return fmt.Errorf("manifest: workspace_id %x", m.WorkspaceId)
	}
	for _, script := range m.Scripts {
		if len(script.Id) != 16 || len(script.LogSourceId) != 16 {
			return errors.New("manifest: script without ids")
		}
	}
	return checkMap(m.DerpMap)
}

// checkMap looks for what makes a genuine peer fall over: it reads home_params without asking whether it is there.
func checkMap(m *pb.DERPMap) error {
	if m == nil || m.HomeParams == nil {
		return errors.New("derp map without home_params")
	}
	for id, region := range m.Regions {
		if region == nil || region.RegionId != id {
			return fmt.Errorf("derp map: region %d has another id inside", id)
		}
	}
	return nil
}

func concurrently(calls []func() error) error {
	results := make(chan error, len(calls))
	for _, each := range calls {
		go func() { results <- each() }()
	}
	var failed error
	for range calls {
		if err := <-results; err != nil && failed == nil {
			failed = err
		}
	}
	return failed
}

// shutdown ends as an agent does: SHUTTING_DOWN, Disconnect on the coordination stream, OFF. The events "end" of the stream and,
// if the server hangs up, "closed" follow.
func shutdown(ctx context.Context, p *peer, _ json.RawMessage) (fields, error) {
	client, err := p.session()
	if err != nil {
		return nil, err
	}
	b := &booting{peer: p, client: client, ctx: ctx}
	report := func(state agentpb.Lifecycle_State) error {
		request := &agentpb.UpdateLifecycleRequest{Lifecycle: &agentpb.Lifecycle{State: state, ChangedAt: timestamppb.Now()}}
		return b.invoke("UpdateLifecycle", request, &agentpb.Lifecycle{})
	}
	if err := report(agentpb.Lifecycle_SHUTTING_DOWN); err != nil {
		return nil, err
	}
	stream, err := p.stream("coordinate")
	if err != nil {
		return nil, err
	}
	request := &pb.CoordinateRequest{Disconnect: &pb.CoordinateRequest_Disconnect{}}
	if _, err := sent(stream, stream.MsgSend(request, encoding{})); err != nil {
		return nil, err
	}
	return nil, report(agentpb.Lifecycle_OFF)
}
