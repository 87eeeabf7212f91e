package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"tailscale.com/derp/derpserver"

	"tailnetpeers/channel"
	"tailnetpeers/proto/agentpb"
	pb "tailnetpeers/proto/tailnetpb"
	"tailnetpeers/uuid"
)

const (
	apiMajor, apiMinor = 2, 11
	heartbeat          = 15 * time.Second
	linger             = 300 * time.Millisecond // between the last word of a shutdown and hanging up
)

type server struct {
	registry *registry
	maps     *derpMaps
	core     *core
	resume   *resumeKey
	relay    *derpserver.Server
	life     context.Context
	sessions sync.WaitGroup
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	relay := derpserver.AddWebSocketSupport(s.relay, derpserver.Handler(s.relay))
	mux.Handle("/derp", relay)
	mux.HandleFunc("/derp/latency-check", derpserver.ProbeHandler)
	mux.HandleFunc("/derp/probe", derpserver.ProbeHandler)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /api/v2/workspaceagents/me/rpc", s.agentRPC)
	mux.HandleFunc("GET /api/v2/workspaceagents/me/coordinate", s.agentLegacy)
	mux.HandleFunc("GET /api/v2/workspaceagents/{agent}/coordinate", s.clientCoordinate)
	mux.HandleFunc("GET /api/v2/tailnet", s.tailnetRPC)
	return mux
}

type validation struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

func refuse(w http.ResponseWriter, status int, message, detail string, validations ...validation) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(struct {
		Message     string       `json:"message"`
		Detail      string       `json:"detail,omitempty"`
		Validations []validation `json:"validations,omitempty"`
	}{message, detail, validations})
}

// token returns the first non-empty token of the places where peers put it.
func token(r *http.Request) string {
	if cookie, err := r.Cookie("coder_session_token"); err == nil && cookie.Value != "" {
		return cookie.Value
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	for _, candidate := range []string{
		r.URL.Query().Get("coder_session_token"), r.Header.Get("Coder-Session-Token"), bearer, r.URL.Query().Get("access_token"),
	} {
		if candidate != "" {
			return candidate
		}
	}
	return ""
}

// versionServed answers 400 to a version that this server does not speak.
func versionServed(w http.ResponseWriter, r *http.Request) bool {
	text := r.URL.Query().Get("version")
	if text == "" {
		return true
	}
	first, second, dotted := strings.Cut(text, ".")
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(second)
	detail := ""
	switch {
	case !dotted || err1 != nil || err2 != nil || major < 0 || minor < 0:
		detail = fmt.Sprintf("invalid version string: %s", text)
	case major == 1:
		detail = "version 1.0 is no longer supported"
	case major > apiMajor || minor > apiMinor:
		detail = fmt.Sprintf("server is at version %d.%d, behind requested minor version %s", apiMajor, apiMinor, text)
	default:
		return true
	}
	refuse(w, http.StatusBadRequest, "Unknown or unsupported API version", "", validation{"version", detail})
	return false
}

func (s *server) agentOf(w http.ResponseWriter, r *http.Request) *agentRecord {
	agent := s.registry.agentTokens[token(r)]
	if agent == nil {
		refuse(w, http.StatusUnauthorized, "Workspace agent not authorized.", "The agent token is not known.")
	}
	return agent
}

func (s *server) userOf(w http.ResponseWriter, r *http.Request) *userRecord {
	user := s.registry.userTokens[token(r)]
	if user == nil {
		refuse(w, http.StatusUnauthorized, "You are signed out or your session has expired. Please sign in again to continue.", "")
	}
	return user
}

// peerID is fresh for each client connection, unless a resume token names it.
func (s *server) peerID(w http.ResponseWriter, r *http.Request) (uuid.ID, bool) {
	text := r.URL.Query().Get("resume_token")
	if text == "" {
		return uuid.New(), true
	}
	id, err := s.resume.verify(text, time.Now())
	if err != nil {
		refuse(w, http.StatusUnauthorized, "Invalid resume token", err.Error(), validation{"resume_token", "Invalid resume token"})
		return id, false
	}
	return id, true
}

func (s *server) agentRPC(w http.ResponseWriter, r *http.Request) {
	if !versionServed(w, r) {
		return
	}
	agent := s.agentOf(w, r)
	if agent == nil {
		return
	}
	mux := channel.NewMux()
	mux.Register(&tailnetService{server: s, id: agent.ID, rules: agentPolicy{agent.ID}}, pb.DRPCTailnetDescription{})
	mux.Register(&agentService{server: s, agent: agent}, agentpb.DRPCAgentDescription{})
	s.serveRPC(w, r, mux, true)
}

func (s *server) clientCoordinate(w http.ResponseWriter, r *http.Request) {
	user := s.userOf(w, r)
	if user == nil {
		return
	}
	agent, err := uuid.Parse(r.PathValue("agent"))
	if err != nil || s.registry.mayDial(user, agent) != nil {
		refuse(w, http.StatusNotFound, "Resource not found or you do not have access to this resource", "")
		return
	}
	rules := clientPolicy{func(destination uuid.ID) error {
		if destination != agent {
			return fmt.Errorf("this connection may reach agent %s only", agent)
		}
		return nil
	}}
	if !r.URL.Query().Has("version") {
		s.serveLegacy(w, r, uuid.New(), rules, &agent)
		return
	}
	if versionServed(w, r) {
		s.serveClient(w, r, user, rules)
	}
}

func (s *server) tailnetRPC(w http.ResponseWriter, r *http.Request) {
	if !versionServed(w, r) {
		return
	}
	user := s.userOf(w, r)
	if user == nil {
		return
	}
	s.serveClient(w, r, user, clientPolicy{func(destination uuid.ID) error { return s.registry.mayDial(user, destination) }})
}

func (s *server) serveClient(w http.ResponseWriter, r *http.Request, user *userRecord, rules policy) {
	id, ok := s.peerID(w, r)
	if !ok {
		return
	}
	mux := channel.NewMux()
	mux.Register(&tailnetService{server: s, id: id, rules: rules, user: user}, pb.DRPCTailnetDescription{})
	s.serveRPC(w, r, mux, false)
}

// serveRPC upgrades and serves until the peer leaves or the server stops. Agents are asked for life by yamux pings, clients by
// websocket pings.
func (s *server) serveRPC(w http.ResponseWriter, r *http.Request, mux *channel.Mux, isAgent bool) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	s.sessions.Add(1)
	defer s.sessions.Done()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream := websocket.NetConn(ctx, conn, websocket.MessageBinary)
	session, err := channel.NewServerSession(stream)
	if err != nil {
		conn.Close(websocket.StatusInternalError, err.Error())
		return
	}
	defer session.Close()
	stop := context.AfterFunc(s.life, func() {
		time.Sleep(linger)
		session.Close()
	})
	defer stop()
	go func() {
		ticker := time.NewTicker(heartbeat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			var err error
			if isAgent {
				_, err = session.Ping()
			} else {
				pingCtx, done := context.WithTimeout(ctx, heartbeat)
				err = conn.Ping(pingCtx)
				done()
			}
			if err != nil {
				session.Close()
				return
			}
		}
	}()
	channel.Serve(ctx, session, mux)
}
