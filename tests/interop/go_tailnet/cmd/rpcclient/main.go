// Command rpcclient calls an RPC server on the genuine layers: dRPC in yamux over TCP, no HTTP, messages of plain bytes.
// The server offers /test/Echo (unary), /test/Count (one request, as many answers), /test/Chat (answers each message)
// and /test/Fail. One JSON line per finding; exit code 1 when a call did not do what it must.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"storj.io/drpc"
	"storj.io/drpc/drpcconn"
	"storj.io/drpc/drpcerr"
	"storj.io/drpc/drpcmanager"
	"storj.io/drpc/drpcmetadata"

	"tailnetpeers/channel"
)

type raw struct{}

func (raw) Marshal(msg drpc.Message) ([]byte, error) { return *msg.(*[]byte), nil }

func (raw) Unmarshal(data []byte, msg drpc.Message) error {
	*msg.(*[]byte) = bytes.Clone(data)
	return nil
}

func found(name string, value any) {
	line, err := json.Marshal(map[string]any{"name": name, "value": value})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func must(name string, err error) {
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
}

func echo(ctx context.Context, conn drpc.Conn, size int) error {
	in, out := make([]byte, size), []byte(nil)
	for n := range in {
		in[n] = byte(n * 7)
	}
	if err := conn.Invoke(ctx, "/test/Echo", raw{}, &in, &out); err != nil {
		return err
	}
	if !bytes.Equal(in, out) {
		return fmt.Errorf("echo of %d bytes came back as %d others", len(in), len(out))
	}
	return nil
}

func failure(ctx context.Context, conn drpc.Conn, rpc string) map[string]any {
	in, out := []byte("?"), []byte(nil)
	err := conn.Invoke(ctx, rpc, raw{}, &in, &out)
	if err == nil {
		log.Fatalf("%s did not fail", rpc)
	}
	return map[string]any{"code": drpcerr.Code(err), "text": err.Error()}
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tcp, err := net.Dial("tcp", os.Args[1])
	must("dial", err)
	client, err := channel.NewClientOn(tcp)
	must("yamux", err)

	for _, size := range []int{0, 1, 127, 128, 65535, 65536, 65537, 262144, 3 << 20} {
		must(fmt.Sprintf("echo %d", size), echo(ctx, client, size))
	}
	found("echo", "all sizes")
	found("fail", failure(ctx, client, "/test/Fail"))
	found("unknown", failure(ctx, client, "/test/NoSuchRpc"))

	var all sync.WaitGroup
	for range 100 {
		all.Add(1)
		go func() {
			defer all.Done()
			must("echo at once", echo(ctx, client, 1000))
		}()
	}
	all.Wait()
	found("at once", 100)

	count(ctx, client)
	chat(ctx, client)
	cancelled(ctx, client)
	rtt, err := client.Session.Ping()
	must("ping", err)
	found("ping", rtt > 0)
	inARow(ctx, client.Session)
	must("close", client.Close())
}

func count(ctx context.Context, conn drpc.Conn) {
	stream, err := conn.NewStream(ctx, "/test/Count", raw{})
	must("count", err)
	in := []byte("1000")
	must("count send", stream.MsgSend(&in, raw{}))
	must("count close send", stream.CloseSend())
	got := 0
	for {
		var out []byte
		err := stream.MsgRecv(&out, raw{})
		if errors.Is(err, io.EOF) {
			break
		}
		must("count receive", err)
		if string(out) != fmt.Sprint(got) {
			log.Fatalf("count: got %q, want %d", out, got)
		}
		got++
	}
	must("count close", stream.Close())
	found("count", got)
}

func chat(ctx context.Context, conn drpc.Conn) {
	stream, err := conn.NewStream(ctx, "/test/Chat", raw{})
	must("chat", err)
	for n := range 50 {
		in, out := []byte(fmt.Sprintf("message %d", n)), []byte(nil)
		must("chat send", stream.MsgSend(&in, raw{}))
		must("chat receive", stream.MsgRecv(&out, raw{}))
		if !bytes.Equal(in, out) {
			log.Fatalf("chat: %q came back as %q", in, out)
		}
	}
	must("chat close send", stream.CloseSend())
	var out []byte
	err = stream.MsgRecv(&out, raw{})
	found("chat ends with EOF", errors.Is(err, io.EOF))
	must("chat close", stream.Close())
}

// cancelled gives up a call whose answer never comes, as the agent does with its contexts.
func cancelled(ctx context.Context, conn drpc.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := conn.NewStream(ctx, "/test/Chat", raw{})
	must("cancelled", err)
	in := []byte("cancelled soon")
	must("cancelled send", stream.MsgSend(&in, raw{}))
	var out []byte
	must("cancelled receive", stream.MsgRecv(&out, raw{}))
	cancel()
	found("cancelled", stream.MsgRecv(&out, raw{}) != nil)
}

// inARow makes several calls on one yamux stream, with metadata and a soft cancel between them.
func inARow(ctx context.Context, session *yamux.Session) {
	stream, err := session.OpenStream()
	must("in a row", err)
	conn := drpcconn.NewWithOptions(stream, drpcconn.Options{Manager: drpcmanager.Options{SoftCancel: true}})
	for n := range 5 {
		must("in a row", echo(drpcmetadata.Add(ctx, "call", fmt.Sprint(n)), conn, n*40000))
		soft, cancel := context.WithCancel(ctx)
		rpc, err := conn.NewStream(soft, "/test/Chat", raw{})
		must("soft", err)
		in, out := []byte("soft"), []byte(nil)
		must("soft send", rpc.MsgSend(&in, raw{}))
		must("soft receive", rpc.MsgRecv(&out, raw{}))
		cancel()
		<-rpc.Context().Done()
	}
	must("in a row close", conn.Close())
	found("in a row", 10)
}
