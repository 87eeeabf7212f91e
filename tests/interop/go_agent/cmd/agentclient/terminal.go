package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const ptyPort = 2

// terminal is a connection to the reconnecting PTY, and all that it has shown.
type terminal struct {
	conn  net.Conn
	mu    sync.Mutex
	shown strings.Builder
	over  error
	came  chan struct{}
}

// read takes output until its end; came has room for one, so that nobody is missed and nobody waits.
func (t *terminal) read(from io.Reader) {
	buffer := make([]byte, 4096)
	for {
		size, err := from.Read(buffer)
		t.mu.Lock()
		t.shown.Write(buffer[:size])
		t.over = err
		t.mu.Unlock()
		signal(t.came)
		if err != nil {
			return
		}
	}
}

// wait returns what was shown when it has the text; an empty text is the end.
func (t *terminal) wait(text string) (string, error) {
	limit := time.After(callLimit)
	for {
		t.mu.Lock()
		shown, over := t.shown.String(), t.over
		t.mu.Unlock()
		switch {
		case text != "" && strings.Contains(shown, text), text == "" && over == io.EOF:
			return shown, nil
		case over != nil:
			return shown, fmt.Errorf("it ended (%w) and showed %q", over, shown)
		}
		select {
		case <-t.came:
		case <-limit:
			return shown, fmt.Errorf("it showed %q", shown)
		}
	}
}

func openTerminal(c *client, o order) (answer, error) {
	wish, err := json.Marshal(o.Terminal)
	if err != nil {
		return answer{}, err
	}
	conn, err := c.node.Dial(ptyPort)
	if err != nil {
		return answer{}, err
	}
	// In one write: agents read the length and the rest with one read each.
	if _, err := conn.Write(append(binary.LittleEndian.AppendUint16(nil, uint16(len(wish))), wish...)); err != nil {
		return answer{}, err
	}
	t := &terminal{conn: conn, came: make(chan struct{}, 1)}
	c.terminals[o.Name] = t
	go t.read(conn)
	return answer{}, nil
}

func (c *client) terminal(name string) (*terminal, error) {
	t := c.terminals[name]
	if t == nil {
		return nil, errors.New("no such terminal: " + name)
	}
	return t, nil
}

func typeKeys(c *client, o order) (answer, error) {
	t, err := c.terminal(o.Name)
	if err != nil {
		return answer{}, err
	}
	return answer{}, json.NewEncoder(t.conn).Encode(struct {
		Data   string `json:"data,omitempty"`
		Height uint16 `json:"height,omitempty"`
		Width  uint16 `json:"width,omitempty"`
	}{o.Text, o.Height, o.Width})
}

func waitShown(c *client, o order) (answer, error) {
	t, err := c.terminal(o.Name)
	if err != nil {
		return answer{}, err
	}
	shown, err := t.wait(o.Text)
	return answer{Text: shown}, err
}

func closeTerminal(c *client, o order) (answer, error) {
	t, err := c.terminal(o.Name)
	if err != nil {
		return answer{}, err
	}
	delete(c.terminals, o.Name)
	return answer{}, t.conn.Close()
}
