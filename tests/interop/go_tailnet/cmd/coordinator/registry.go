package main

import (
	"encoding/json"
	"errors"
	"os"

	"tailnetpeers/uuid"
)

// registry is the seed file in memory: who exists, and whose token is whose.
type registry struct {
	agents      map[uuid.ID]*agentRecord
	agentTokens map[string]*agentRecord
	userTokens  map[string]*userRecord
}

type agentRecord struct {
	ID            uuid.ID
	WorkspaceID   uuid.ID
	OwnerID       uuid.ID
	Name          string
	WorkspaceName string
	OwnerName     string
}

type userRecord struct {
	ID   uuid.ID
	Name string
}

func loadRegistry(path string) (*registry, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Users []struct {
			ID, Username, Token string
		}
		Agents []struct {
			ID, Token, Name string
			WorkspaceID     string `json:"workspace_id"`
			WorkspaceName   string `json:"workspace_name"`
			OwnerID         string `json:"owner_id"`
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	r := &registry{map[uuid.ID]*agentRecord{}, map[string]*agentRecord{}, map[string]*userRecord{}}
	names := map[uuid.ID]string{}
	for _, user := range file.Users {
		id, err := uuid.Parse(user.ID)
		if err != nil {
			return nil, err
		}
		names[id] = user.Username
		r.userTokens[user.Token] = &userRecord{id, user.Username}
	}
	for _, agent := range file.Agents {
		id, err := uuid.Parse(agent.ID)
		workspace, err2 := uuid.Parse(agent.WorkspaceID)
		owner, err3 := uuid.Parse(agent.OwnerID)
		if err := errors.Join(err, err2, err3); err != nil {
			return nil, err
		}
		record := &agentRecord{id, workspace, owner, agent.Name, agent.WorkspaceName, names[owner]}
		r.agents[id] = record
		r.agentTokens[agent.Token] = record
	}
	return r, nil
}

var errNotFound = errors.New("workspace agent not found or you do not have permission")

// mayDial allows an owner's agents only.
func (r *registry) mayDial(user *userRecord, agent uuid.ID) error {
	record := r.agents[agent]
	if record == nil || record.OwnerID != user.ID {
		return errNotFound
	}
	return nil
}
