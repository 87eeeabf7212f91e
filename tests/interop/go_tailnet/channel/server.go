package channel

import (
	"context"
	"errors"
	"io"

	"github.com/hashicorp/yamux"
	"storj.io/drpc"
	"storj.io/drpc/drpcerr"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"
)

// CodeUnimplemented is what peers expect of an RPC that the server does not know.
const CodeUnimplemented = 12

// Mux adds the unknown-RPC answer of the field to drpcmux: code 12, where the library alone says code 0.
type Mux struct {
	*drpcmux.Mux
	known map[string]bool
}

// NewMux returns an empty Mux.
func NewMux() *Mux { return &Mux{drpcmux.New(), map[string]bool{}} }

// Register adds a service.
func (m *Mux) Register(service any, description drpc.Description) error {
	for n := range description.NumMethods() {
		rpc, _, _, _, _ := description.Method(n)
		m.known[rpc] = true
	}
	return m.Mux.Register(service, description)
}

// HandleRPC implements drpc.Handler.
func (m *Mux) HandleRPC(stream drpc.Stream, rpc string) error {
	if !m.known[rpc] {
		return drpcerr.WithCode(errors.New("Unimplemented"), CodeUnimplemented)
	}
	return m.Mux.HandleRPC(stream, rpc)
}

// NewServerSession runs the accepting end of yamux over a byte stream.
func NewServerSession(stream io.ReadWriteCloser) (*yamux.Session, error) {
	return yamux.Server(stream, quiet())
}

// Serve answers RPCs, each on a stream of its own, until the session or the context ends.
func Serve(ctx context.Context, session *yamux.Session, handler drpc.Handler) error {
	return drpcserver.New(handler).Serve(ctx, session)
}
