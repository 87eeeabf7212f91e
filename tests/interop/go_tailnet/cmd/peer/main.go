// Command peer is an agent and a client of the tailnet protocol, built on the genuine layers and driven over stdin and stdout.
//
// One JSON object a line each way. A request has id, op and peer; its reply repeats id and has ok, or error. Everything that
// happens without being asked for is a line with peer and event. One process holds many named peers.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"storj.io/drpc/drpcerr"

	"tailnetpeers/channel"
)

// callLimit bounds each operation, so that a silent server is an error here and not a hang in the test.
const callLimit = 20 * time.Second

type fields = map[string]any

// output writes lines from many goroutines.
type output struct {
	mu      sync.Mutex
	encoder *json.Encoder
}

func (o *output) write(line fields) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.encoder.Encode(line); err != nil {
		os.Exit(1) // the driver is gone
	}
}

var lines = &output{encoder: json.NewEncoder(os.Stdout)}

// operation serves one request of one peer.
type operation func(ctx context.Context, p *peer, arguments json.RawMessage) (fields, error)

var operations = map[string]operation{
	"identity":       identity,
	"schema":         schema,
	"dial":           dial,
	"call":           call,
	"open":           openStream,
	"send":           sendMessage,
	"close_send":     closeSend,
	"close_stream":   closeStream,
	"update":         sendUpdate,
	"boot":           boot,
	"shutdown":       shutdown,
	"ping":           ping,
	"hang_up":        hangUp,
	"pause_reading":  pauseReading,
	"resume_reading": resumeReading,
	"half_open":      halfOpen,
	"relay":          openRelay,
	"relay_send":     relaySend,
	"relay_close":    relayClose,
	"legacy_dial":    legacyDial,
	"legacy_send":    legacySend,
	"raw_dial":       rawDial,
	"raw_write":      rawWrite,
}

func main() {
	peers := map[string]*peer{}
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 64<<20)
	for input.Scan() {
		var head struct {
			ID   int64
			Op   string
			Peer string
		}
		line := append(json.RawMessage(nil), input.Bytes()...)
		if err := json.Unmarshal(line, &head); err != nil {
			fmt.Fprintf(os.Stderr, "bad line: %v\n", err)
			os.Exit(2)
		}
		p := peers[head.Peer]
		if p == nil {
			p = newPeer(head.Peer)
			peers[head.Peer] = p
		}
		go func() {
			reply := fields{}
			ctx, cancel := context.WithTimeout(context.Background(), callLimit)
			defer cancel()
			if serve := operations[head.Op]; serve == nil {
				reply["error"] = fields{"text": "no such op: " + head.Op}
			} else if result, err := serve(ctx, p, line); err != nil {
				reply["error"] = describe(err)
			} else {
				reply = result
				if reply == nil {
					reply = fields{}
				}
				reply["ok"] = true
			}
			reply["id"] = head.ID
			lines.write(reply)
		}()
	}
}

// describe turns an error into what a test asserts on: the HTTP answer, or the RPC error code.
func describe(err error) fields {
	out := fields{"text": err.Error()}
	var refused *channel.Refused
	if errors.As(err, &refused) {
		out["status"] = refused.Status
		out["body"] = refused.Body
	}
	if code := drpcerr.Code(err); code != 0 {
		out["code"] = code
	}
	return out
}

func parse[T any](raw json.RawMessage) (T, error) {
	var arguments T
	err := json.Unmarshal(raw, &arguments)
	return arguments, err
}
