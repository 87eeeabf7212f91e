package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

// tailnetService serves one connection of an agent or a client.
type tailnetService struct {
	server *server
	id     uuid.ID
	rules  policy
	user   *userRecord // nil for an agent
}

func (s *tailnetService) PostTelemetry(context.Context, *pb.TelemetryRequest) (*pb.TelemetryResponse, error) {
	return &pb.TelemetryResponse{}, nil
}

func (s *tailnetService) StreamDERPMaps(_ *pb.StreamDERPMapsRequest, stream pb.DRPCTailnet_StreamDERPMapsStream) error {
	defer stream.Close()
	return s.server.maps.follow(stream.Context(), stream.Send)
}

func (s *tailnetService) RefreshResumeToken(context.Context, *pb.RefreshResumeTokenRequest) (*pb.RefreshResumeTokenResponse, error) {
	expires := time.Now().Add(resumeLife)
	return &pb.RefreshResumeTokenResponse{
		Token:     s.server.resume.issue(s.id, expires),
		RefreshIn: durationpb.New(resumeLife / 2),
		ExpiresAt: timestamppb.New(expires),
		PeerId:    s.id[:],
	}, nil
}

func (s *tailnetService) Coordinate(stream pb.DRPCTailnet_CoordinateStream) error {
	defer stream.Close()
	requests, responses := s.server.core.connect(stream.Context(), s.id, s.rules)
	go func() {
		defer close(requests)
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- req:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	for resp := range responses {
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

func (s *tailnetService) WorkspaceUpdates(req *pb.WorkspaceUpdatesRequest, stream pb.DRPCTailnet_WorkspaceUpdatesStream) error {
	defer stream.Close()
	owner, err := uuid.FromBytes(req.WorkspaceOwnerId)
	if err != nil {
		return err
	}
	if s.user == nil || s.user.ID != owner {
		return errNotFound
	}
	all := &pb.WorkspaceUpdate{}
	seen := map[uuid.ID]bool{}
	for _, agent := range s.server.registry.agents {
		if agent.OwnerID != owner {
			continue
		}
		all.UpsertedAgents = append(all.UpsertedAgents,
			&pb.Agent{Id: agent.ID[:], Name: agent.Name, WorkspaceId: agent.WorkspaceID[:]})
		if !seen[agent.WorkspaceID] {
			seen[agent.WorkspaceID] = true
			all.UpsertedWorkspaces = append(all.UpsertedWorkspaces,
				&pb.Workspace{Id: agent.WorkspaceID[:], Name: agent.WorkspaceName, Status: pb.Workspace_RUNNING})
		}
	}
	if err := stream.Send(all); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}
