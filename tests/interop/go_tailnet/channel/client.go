// Package channel is the RPC channel of both ends: dRPC in yamux streams in a websocket, each layer the genuine library.
// One yamux stream carries one RPC, also a unary one, and is closed afterwards.
package channel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
)

// Refused is an HTTP answer other than 101.
type Refused struct {
	Status int
	Body   string
	Err    error
}

func (r *Refused) Error() string { return fmt.Sprintf("status %d: %v", r.Status, r.Err) }

// Socket is a dialled websocket together with the TCP connection below it.
type Socket struct {
	*websocket.Conn
	Wire *Wire
}

// Wire is the TCP connection under a websocket. Its reads can be stopped, which makes a peer that never reads.
type Wire struct {
	net.Conn
	paused   atomic.Bool
	mu       sync.Mutex
	resumed  chan struct{}
	received atomic.Int64
}

// Pause stops reading before the next read; Resume lets it go on.
func (w *Wire) Pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.paused.Swap(true) {
		w.resumed = make(chan struct{})
	}
}

// Resume undoes Pause.
func (w *Wire) Resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.paused.Swap(false) {
		close(w.resumed)
	}
}

func (w *Wire) Read(into []byte) (int, error) {
	n, err := w.Conn.Read(into)
	w.received.Add(int64(n))
	for w.paused.Load() {
		w.mu.Lock()
		wait := w.resumed
		w.mu.Unlock()
		<-wait
	}
	return n, err
}

// Received counts bytes read so far, the HTTP head included.
func (w *Wire) Received() int64 { return w.received.Load() }

// Close also wakes a paused reader.
func (w *Wire) Close() error {
	err := w.Conn.Close()
	w.Resume()
	return err
}

// DialWebsocket dials url. receiveBuffer > 0 sets the kernel's receive buffer, so that a paused reader is felt soon.
func DialWebsocket(ctx context.Context, url string, header http.Header, subprotocols []string, receiveBuffer int) (*Socket, error) {
	var wire *Wire
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			if receiveBuffer > 0 {
				if err := conn.(*net.TCPConn).SetReadBuffer(receiveBuffer); err != nil {
					return nil, err
				}
			}
			wire = &Wire{Conn: conn}
			return wire, nil
		},
	}
	conn, response, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		HTTPHeader:      header,
		Subprotocols:    subprotocols,
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		refused := &Refused{Err: err}
		if response != nil {
			refused.Status = response.StatusCode
			body, _ := io.ReadAll(response.Body)
			refused.Body = string(body)
		}
		return nil, refused
	}
	// The peers lift the message limit too; dRPC's 4 MiB is the bound.
	conn.SetReadLimit(-1)
	return &Socket{Conn: conn, Wire: wire}, nil
}

// Client is the dialling end. It is a drpc.Conn that opens a stream for each RPC.
type Client struct {
	Session *yamux.Session
	cancel  context.CancelFunc
}

// NewClient runs yamux over a dialled websocket.
func NewClient(socket *Socket) (*Client, error) {
	ctx, cancel := context.WithCancel(context.Background())
	client, err := NewClientOn(websocket.NetConn(ctx, socket.Conn, websocket.MessageBinary))
	if err != nil {
		cancel()
		return nil, err
	}
	client.cancel = cancel
	return client, nil
}

// NewClientOn runs yamux over any byte stream.
func NewClientOn(stream io.ReadWriteCloser) (*Client, error) {
	session, err := yamux.Client(stream, quiet())
	if err != nil {
		return nil, err
	}
	return &Client{Session: session, cancel: func() {}}, nil
}

func quiet() *yamux.Config {
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	return config
}

// Close ends the session and the websocket below it.
func (c *Client) Close() error {
	err := c.Session.Close()
	c.cancel()
	return err
}

// Closed implements drpc.Conn.
func (c *Client) Closed() <-chan struct{} { return c.Session.CloseChan() }

// Invoke implements drpc.Conn.
func (c *Client) Invoke(ctx context.Context, rpc string, enc drpc.Encoding, in, out drpc.Message) error {
	stream, err := c.Session.OpenStream()
	if err != nil {
		return err
	}
	conn := drpcconn.New(stream)
	return first(conn.Invoke(ctx, rpc, enc, in, out), conn.Close())
}

// NewStream implements drpc.Conn.
func (c *Client) NewStream(ctx context.Context, rpc string, enc drpc.Encoding) (drpc.Stream, error) {
	stream, err := c.Session.OpenStream()
	if err != nil {
		return nil, err
	}
	conn := drpcconn.New(stream)
	rpcStream, err := conn.NewStream(ctx, rpc, enc)
	if err != nil {
		conn.Close()
		return nil, err
	}
	go func() {
		<-rpcStream.Context().Done()
		conn.Close()
	}()
	return &ownedStream{rpcStream, conn}, nil
}

// ownedStream closes the connection that was opened for it alone.
type ownedStream struct {
	drpc.Stream
	conn *drpcconn.Conn
}

func (s *ownedStream) Close() error {
	return first(s.Stream.Close(), s.conn.Close())
}

// first returns the error of the work, else that of the close, unless the other end merely closed before us.
func first(work, closing error) error {
	if work != nil {
		return work
	}
	if errors.Is(closing, io.EOF) || errors.Is(closing, yamux.ErrStreamClosed) || errors.Is(closing, yamux.ErrSessionShutdown) {
		return nil
	}
	return closing
}
