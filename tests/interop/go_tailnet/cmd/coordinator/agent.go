package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"tailnetpeers/proto/agentpb"
)

// agentService answers what an agent's start calls, and keeps nothing of it: this server measures coordination.
type agentService struct {
	agentpb.DRPCAgentUnimplementedServer
	server *server
	agent  *agentRecord
}

func (s *agentService) GetManifest(context.Context, *agentpb.GetManifestRequest) (*agentpb.Manifest, error) {
	current, _ := s.server.maps.get()
	return &agentpb.Manifest{
		AgentId: s.agent.ID[:], AgentName: s.agent.Name,
		WorkspaceId: s.agent.WorkspaceID[:], WorkspaceName: s.agent.WorkspaceName,
		OwnerUsername: s.agent.OwnerName, DerpMap: current,
	}, nil
}

func (s *agentService) GetServiceBanner(context.Context, *agentpb.GetServiceBannerRequest) (*agentpb.ServiceBanner, error) {
	return &agentpb.ServiceBanner{}, nil
}

func (s *agentService) GetAnnouncementBanners(context.Context, *agentpb.GetAnnouncementBannersRequest) (*agentpb.GetAnnouncementBannersResponse, error) {
	return &agentpb.GetAnnouncementBannersResponse{}, nil
}

func (s *agentService) UpdateStats(context.Context, *agentpb.UpdateStatsRequest) (*agentpb.UpdateStatsResponse, error) {
	return &agentpb.UpdateStatsResponse{ReportInterval: durationpb.New(5 * time.Minute)}, nil
}

func (s *agentService) UpdateLifecycle(_ context.Context, req *agentpb.UpdateLifecycleRequest) (*agentpb.Lifecycle, error) {
	return req.Lifecycle, nil
}

func (s *agentService) UpdateStartup(_ context.Context, req *agentpb.UpdateStartupRequest) (*agentpb.Startup, error) {
	return req.Startup, nil
}

func (s *agentService) BatchUpdateAppHealths(context.Context, *agentpb.BatchUpdateAppHealthRequest) (*agentpb.BatchUpdateAppHealthResponse, error) {
	return &agentpb.BatchUpdateAppHealthResponse{}, nil
}

func (s *agentService) BatchUpdateMetadata(context.Context, *agentpb.BatchUpdateMetadataRequest) (*agentpb.BatchUpdateMetadataResponse, error) {
	return &agentpb.BatchUpdateMetadataResponse{}, nil
}

func (s *agentService) BatchCreateLogs(context.Context, *agentpb.BatchCreateLogsRequest) (*agentpb.BatchCreateLogsResponse, error) {
	return &agentpb.BatchCreateLogsResponse{}, nil
}

func (s *agentService) ScriptCompleted(context.Context, *agentpb.WorkspaceAgentScriptCompletedRequest) (*agentpb.WorkspaceAgentScriptCompletedResponse, error) {
	return &agentpb.WorkspaceAgentScriptCompletedResponse{}, nil
}

func (s *agentService) GetResourcesMonitoringConfiguration(context.Context, *agentpb.GetResourcesMonitoringConfigurationRequest) (*agentpb.GetResourcesMonitoringConfigurationResponse, error) {
	return &agentpb.GetResourcesMonitoringConfigurationResponse{
		Config: &agentpb.GetResourcesMonitoringConfigurationResponse_Config{NumDatapoints: 20, CollectionIntervalSeconds: 10},
	}, nil
}

func (s *agentService) PushResourcesMonitoringUsage(context.Context, *agentpb.PushResourcesMonitoringUsageRequest) (*agentpb.PushResourcesMonitoringUsageResponse, error) {
	return &agentpb.PushResourcesMonitoringUsageResponse{}, nil
}

func (s *agentService) ReportConnection(context.Context, *agentpb.ReportConnectionRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}
