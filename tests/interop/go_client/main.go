// A user story over a client that oapi-codegen made of docs/openapi.json, into the folder api.
//
//	apiclient URL SESSION_TOKEN AGENT_ID AGENT_TOKEN APP_ID
//
// It ends with 1 and a sentence at the first answer that is another than wanted, else it prints "the story is told".
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"

	"interop-client/api"
)

func main() {
	if err := tell(os.Args[1], os.Args[2], uuid.MustParse(os.Args[3]), os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("the story is told")
}

// with gives every request this token.
func with(url, token string) (*api.ClientWithResponses, error) {
	return api.NewClientWithResponses(url, api.WithRequestEditorFn(func(_ context.Context, request *http.Request) error {
		if token != "" {
			request.Header.Set("Coder-Session-Token", token)
		}
		return nil
	}))
}

func tell(url, token string, agentID uuid.UUID, agentToken, appID string) error {
	ctx := context.Background()
	stranger, err := with(url, "")
	if err != nil {
		return err
	}
	user, err := with(url, token)
	if err != nil {
		return err
	}
	agent, err := with(url, agentToken)
	if err != nil {
		return err
	}
	build, err := stranger.BuildinfoWithResponse(ctx)
	if err != nil {
		return err
	}
	if build.JSON200 == nil || build.JSON200.Version == "" {
		return fmt.Errorf("buildinfo: %s", build.Body)
	}
	refused, err := stranger.AgentsWorkspaceAgentWithResponse(ctx, agentID)
	if err != nil {
		return err
	}
	if refused.JSON401 == nil || refused.JSON401.Message == "" {
		return fmt.Errorf("without a token: %s", refused.Body)
	}
	foreign, err := user.AgentsWorkspaceAgentWithResponse(ctx, uuid.New())
	if err != nil {
		return err
	}
	if foreign.HTTPResponse.StatusCode != 404 || foreign.JSON4XX == nil {
		return fmt.Errorf("an agent that is not there: %s", foreign.Body)
	}
	me, err := user.UsersUserByNameWithResponse(ctx, "me")
	if err != nil {
		return err
	}
	if me.JSON200 == nil || me.JSON200.Status != "active" {
		return fmt.Errorf("users/me: %s", me.Body)
	}
	limit := 10
	listed, err := user.WorkspacesWithResponse(ctx, &api.WorkspacesParams{Limit: &limit})
	if err != nil {
		return err
	}
	if listed.JSON200 == nil || listed.JSON200.Count < 1 {
		return fmt.Errorf("workspaces: %s", listed.Body)
	}
	named, err := user.WorkspacesWorkspaceByNameWithResponse(ctx, me.JSON200.Username, listed.JSON200.Workspaces[0].Name)
	if err != nil {
		return err
	}
	if named.JSON200 == nil || named.JSON200.Id != listed.JSON200.Workspaces[0].Id {
		return fmt.Errorf("a workspace by its name: %s", named.Body)
	}
	found, err := user.ConnectionConnectionOfAgentWithResponse(ctx, agentID)
	if err != nil {
		return err
	}
	if found.JSON200 == nil || len(found.JSON200.DerpMap.Regions) == 0 {
		return fmt.Errorf("connection: %s", found.Body)
	}
	if err := report(ctx, agent, appID); err != nil {
		return err
	}
	return readBack(ctx, user, agentID, appID)
}

func report(ctx context.Context, agent *api.ClientWithResponses, appID string) error {
	healths := map[string]api.AgentReportsAppHealthJSONBodyHealths{appID: "healthy"}
	health, err := agent.AgentReportsAppHealthWithResponse(ctx, api.AgentReportsAppHealthJSONRequestBody{Healths: &healths})
	if err != nil {
		return err
	}
	if health.HTTPResponse.StatusCode != 200 {
		return fmt.Errorf("app-health: %s", health.Body)
	}
	source := uuid.New()
	added, err := agent.AgentReportsLogSourceWithResponse(
		ctx, api.AgentReportsLogSourceJSONRequestBody{Id: source, DisplayName: "a generated client"})
	if err != nil {
		return err
	}
	if added.JSON201 == nil || added.JSON201.Id != source {
		return fmt.Errorf("log-source: %s", added.Body)
	}
	output, level := "told by Go", api.AgentReportsLogsJSONBodyLogsLevel("warn")
	var lines api.AgentReportsLogsJSONRequestBody
	lines.LogSourceId = &source
	lines.Logs = &[]struct {
		CreatedAt *time.Time                             `json:"created_at,omitempty"`
		Level     *api.AgentReportsLogsJSONBodyLogsLevel `json:"level,omitempty"`
		Output    *string                                `json:"output,omitempty"`
	}{{Output: &output, Level: &level}}
	taken, err := agent.AgentReportsLogsWithResponse(ctx, lines)
	if err != nil {
		return err
	}
	if taken.HTTPResponse.StatusCode != 200 {
		return fmt.Errorf("logs: %s", taken.Body)
	}
	stats, err := agent.AgentReportsReportStatsWithResponse(ctx, api.AgentReportsReportStatsJSONRequestBody{})
	if err != nil {
		return err
	}
	if stats.JSON200 == nil || stats.JSON200.ReportInterval <= 0 {
		return fmt.Errorf("report-stats: %s", stats.Body)
	}
	return nil
}

// readBack asks until the store has what was reported: agents are answered before it.
func readBack(ctx context.Context, user *api.ClientWithResponses, agentID uuid.UUID, appID string) error {
	var last []byte
	for range 200 {
		time.Sleep(50 * time.Millisecond)
		shown, err := user.AgentsWorkspaceAgentWithResponse(ctx, agentID)
		if err != nil {
			return err
		}
		if shown.JSON200 == nil {
			return fmt.Errorf("the agent: %s", shown.Body)
		}
		last = shown.Body
		logs, err := user.LogsWithResponse(ctx, agentID, &api.LogsParams{})
		if err != nil {
			return err
		}
		if logs.JSON200 == nil {
			return fmt.Errorf("logs: %s", logs.Body)
		}
		for _, app := range shown.JSON200.Apps {
			if app.Id.String() == appID && app.Health == "healthy" && len(*logs.JSON200) > 0 {
				line := (*logs.JSON200)[len(*logs.JSON200)-1]
				if line.Output == "told by Go" && line.Level == "warn" {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("what was reported never came: %s", last)
}
