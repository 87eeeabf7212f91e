// Command coordinator is the Go baseline: the coordinator's rules on the genuine layers, with one goroutine per peer and direction.
// Tests prove the interop peers on it, and the bench measures beside it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/types/key"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address of API, RPC and relay")
	seed := flag.String("seed", "", "JSON file with users and agents")
	mapFile := flag.String("derp-map", "", "JSON file merged over the embedded region, read again when it changes")
	flag.Parse()
	if err := run(*listen, *seed, *mapFile); err != nil {
		log.Fatal(err)
	}
}

func run(listen, seed, mapFile string) error {
	registry, err := loadRegistry(seed)
	if err != nil {
		return err
	}
	maps, err := newDerpMaps(mapFile)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s := &server{registry: registry, maps: maps, core: newCore(), resume: newResumeKey(), life: ctx}
	s.relay = derpserver.New(key.NewNode(), func(string, ...any) {})
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "listening on %s\n", listener.Addr())
	httpServer := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(discard{}, "", 0)}
	go httpServer.Serve(listener)
	<-ctx.Done()
	s.core.shutdown()
	// The hijacked connections send what they hold and close; this is all the grace a baseline needs.
	done := make(chan struct{})
	go func() { s.sessions.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
	return httpServer.Close()
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
