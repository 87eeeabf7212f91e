package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coder/websocket"
)

// rawDial opens the websocket and nothing above it, for peers that misbehave in a way no library does. Each message is an event
// "raw_message" with kind and hex; the end is "raw_closed" with the close code (-1: none).
func rawDial(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	t, err := parse[target](raw)
	if err != nil {
		return nil, err
	}
	socket, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.socket, p.access = socket, t.URL
	p.mu.Unlock()
	go func() {
		for {
			kind, data, err := socket.Read(context.Background())
			if err != nil {
				p.event("raw_closed", fields{"code": int(websocket.CloseStatus(err)), "error": err.Error()})
				socket.CloseNow()
				return
			}
			p.event("raw_message", fields{"kind": kind.String(), "hex": hex.EncodeToString(data)})
		}
	}()
	return nil, nil
}

// rawWrite sends bytes as one websocket message, binary or text, or on the TCP connection below ("tcp"); repeat times over.
func rawWrite(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		Hex    string
		As     string
		Repeat int
	}](raw)
	if err != nil {
		return nil, err
	}
	data, err := hex.DecodeString(arguments.Hex)
	if err != nil {
		return nil, err
	}
	socket, err := p.openSocket()
	if err != nil {
		return nil, err
	}
	for range max(arguments.Repeat, 1) {
		switch arguments.As {
		case "binary", "":
			err = socket.Write(ctx, websocket.MessageBinary, data)
		case "text":
			err = socket.Write(ctx, websocket.MessageText, data)
		case "tcp":
			_, err = socket.Wire.Write(data)
		default:
			err = fmt.Errorf("raw_write as %q", arguments.As)
		}
		if err != nil {
			// A server that hung up in the middle is an answer, and "raw_closed" tells it.
			if errors.Is(err, context.DeadlineExceeded) {
				return nil, err
			}
			return fields{"cut_short": err.Error()}, nil
		}
	}
	return nil, nil
}
