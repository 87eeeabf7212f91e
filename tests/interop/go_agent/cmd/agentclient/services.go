package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"tailscale.com/net/speedtest"
)

const (
	callLimit     = 30 * time.Second
	speedtestPort = 3
	httpPort      = 4
)

func halfClose(conn net.Conn) error {
	return conn.(interface{ CloseWrite() error }).CloseWrite()
}

// exchange sends and reads at once, and compares.
func exchange(conn net.Conn, closeWrite func() error, size int) error {
	data := make([]byte, size)
	rand.Read(data)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		if err == nil {
			err = closeWrite()
		}
		wrote <- err
	}()
	got, err := io.ReadAll(conn)
	if err == nil {
		err = <-wrote
	}
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("%d bytes came back of %d, and not what was sent", len(got), size)
	}
	return err
}

func echo(c *client, o order) (answer, error) {
	conn, err := c.node.Dial(o.Port)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return answer{Size: o.Size}, exchange(conn, func() error { return halfClose(conn) }, o.Size)
}

func refused(c *client, o order) (answer, error) {
	conn, err := c.node.Dial(o.Port)
	if err == nil {
		conn.Close()
		return answer{}, errors.New("it was accepted")
	}
	if strings.Contains(err.Error(), "refused") {
		return answer{}, nil
	}
	return answer{}, err
}

// overTunnel asks the agent's HTTP server, one connection for each request.
func (c *client) overTunnel() *http.Client {
	dial := func(context.Context, string, string) (net.Conn, error) { return c.node.Dial(httpPort) }
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

func request(c *client, o order) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	asked, err := http.NewRequestWithContext(ctx, o.Method, "http://agent"+o.Path, nil)
	if err != nil {
		return answer{}, err
	}
	response, err := c.overTunnel().Do(asked)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{Status: response.StatusCode, Text: string(body), Messages: response.Header["Content-Type"]}, err
}

// watch opens a websocket and reads the first messages.
func watch(c *client, o order) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	options := &websocket.DialOptions{HTTPClient: c.overTunnel(), CompressionMode: websocket.CompressionNoContextTakeover}
	socket, response, err := websocket.Dial(ctx, "ws://agent"+o.Path, options)
	if err != nil {
		if response == nil {
			return answer{}, err
		}
		body, _ := io.ReadAll(response.Body)
		return answer{Status: response.StatusCode, Text: string(body)}, nil
	}
	defer socket.CloseNow()
	socket.SetReadLimit(4 << 20)
	said := answer{Status: response.StatusCode}
	for range o.Count {
		kind, message, err := socket.Read(ctx)
		if err == nil && kind != websocket.MessageText {
			err = errors.New("a message is no text")
		}
		if err != nil {
			return said, err
		}
		said.Messages = append(said.Messages, string(message))
	}
	return said, socket.Close(websocket.StatusNormalClosure, "")
}

// measure runs the genuine speed test, which dials: a local port leads into the tunnel for it.
func measure(c *client, o order) (answer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return answer{}, err
	}
	defer listener.Close()
	go func() {
		local, err := listener.Accept()
		if err != nil {
			return
		}
		defer local.Close()
		conn, err := c.node.Dial(speedtestPort)
		if err != nil {
			return
		}
		defer conn.Close()
		go func() {
			io.Copy(conn, local)
			halfClose(conn)
		}()
		io.Copy(local, conn)
	}()
	direction := speedtest.Download
	if o.Upload {
		direction = speedtest.Upload
	}
	results, err := speedtest.RunClient(direction, time.Duration(o.Seconds)*time.Second, listener.Addr().String())
	if err != nil {
		return answer{}, err
	}
	last := results[len(results)-1]
	if !last.Total {
		return answer{}, errors.New("the test has no total")
	}
	return answer{Size: last.Bytes, Text: fmt.Sprintf("%.1f Mbit/s", last.MBitsPerSecond())}, nil
}
