// Command quicpeer speaks DERP over QUIC by quic-go: as a client that is told what to do, or as a relay for one that
// sends to itself.
//
//	quicpeer           client: an order a line on standard input, an answer a line of JSON
//	quicpeer -relay    relay: a line of JSON with its port and the pin of its certificate, then serves until it is killed
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/quic-go/quic-go"

	"interopwires/derp"
)

const (
	protocol = "derp-quic/2"
	patience = 60 * time.Second
)

type answer map[string]any

// The relay is built for no more than this, which quic-go would otherwise find out first.
var settings = &quic.Config{
	EnableDatagrams:   true,
	InitialPacketSize: 1400,
	MaxIdleTimeout:    45 * time.Second,
	KeepAlivePeriod:   15 * time.Second,
}

type packet struct {
	from []byte
	data []byte
	way  string
}

// tickets counts what a relay that does not want 0-RTT does not give.
type tickets struct{ count int }

func (t *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (t *tickets) Put(_ string, state *tls.ClientSessionState) {
	if state != nil {
		t.count++
	}
}

type client struct {
	conn    *quic.Conn
	stream  *quic.Stream
	keys    *derp.Keys
	packets chan packet
	stun    chan []byte
	tickets tickets
	sockets []*quic.Transport
}

func (c *client) socket() (*quic.Transport, error) {
	sock, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	transport := &quic.Transport{Conn: sock}
	c.sockets = append(c.sockets, transport)
	return transport, nil
}

func (c *client) dial(ctx context.Context, address string) (answer, error) {
	to, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, err
	}
	transport, err := c.socket()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		InsecureSkipVerify: true, // the test compares the leaf
		ServerName:         "127.0.0.1",
		NextProtos:         []string{protocol},
		ClientSessionCache: &c.tickets,
	}
	if c.conn, err = transport.DialEarly(ctx, to, config, settings); err != nil {
		return nil, err
	}
	if c.stream, err = c.conn.OpenStream(); err != nil {
		return nil, err
	}
	if c.keys, err = derp.NewKeys(); err != nil {
		return nil, err
	}
	from := bufio.NewReader(c.stream)
	if err := c.keys.Call(from, c.stream, address); err != nil {
		return nil, err
	}
	c.packets, c.stun = make(chan packet, 4096), make(chan []byte, 16)
	go c.hear(from)
	go c.hearDatagrams()
	state := c.conn.ConnectionState()
	leaf := sha256.Sum256(state.TLS.PeerCertificates[0].Raw)
	return answer{
		"key":       hex.EncodeToString(c.keys.Own[:]),
		"server":    hex.EncodeToString(c.keys.Other[:]),
		"leaf":      hex.EncodeToString(leaf[:]),
		"protocol":  state.TLS.NegotiatedProtocol,
		"datagrams": state.SupportsDatagrams.Remote,
		"early":     state.Used0RTT,
	}, nil
}

func (c *client) take(frame derp.Frame, way string) {
	if frame.Type == derp.RecvPacket && len(frame.Payload) >= derp.KeyBytes {
		c.packets <- packet{frame.Payload[:derp.KeyBytes], frame.Payload[derp.KeyBytes:], way}
	}
}

func (c *client) hear(from *bufio.Reader) {
	for {
		frame, err := derp.Read(from)
		if err != nil {
			return
		}
		c.take(frame, "stream")
	}
}

func (c *client) hearDatagrams() {
	for {
		datagram, err := c.conn.ReceiveDatagram(context.Background())
		if err != nil {
			return
		}
		if derp.IsStun(datagram) {
			c.stun <- datagram
		} else if frame, err := derp.Decode(datagram); err == nil {
			c.take(frame, "datagram")
		}
	}
}

// send gives a packet to the relay: as a datagram if it fits, as our clients do.
func (c *client) send(to, data []byte) error {
	frame := derp.Encode(derp.SendPacket, to, data)
	err := c.conn.SendDatagram(frame)
	var tooLarge *quic.DatagramTooLargeError
	if errors.As(err, &tooLarge) {
		_, err = c.stream.Write(frame)
	}
	return err
}

func (c *client) next(ctx context.Context) (packet, error) {
	select {
	case got := <-c.packets:
		return got, nil
	case <-c.conn.Context().Done():
		return packet{}, context.Cause(c.conn.Context())
	case <-ctx.Done():
		return packet{}, errors.New("no packet came")
	}
}

func (c *client) receive(ctx context.Context) (answer, error) {
	got, err := c.next(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(got.data)
	return answer{"from": hex.EncodeToString(got.from), "size": len(got.data), "sum": hex.EncodeToString(sum[:]), "way": got.way}, nil
}

// echoes sends to itself, each packet when the one before is back, so that none is lost for want of room.
func (c *client) echoes(ctx context.Context, count, size int) (answer, error) {
	ways := map[string]int{}
	for number := range count {
		data := make([]byte, size)
		rand.Read(data)
		if err := c.send(c.keys.Own[:], data); err != nil {
			return nil, err
		}
		got, err := c.next(ctx)
		if err != nil {
			return nil, fmt.Errorf("packet %d: %w", number, err)
		}
		if string(got.data) != string(data) || string(got.from) != string(c.keys.Own[:]) {
			return nil, fmt.Errorf("packet %d is another one", number)
		}
		ways[got.way]++
	}
	return answer{"ways": ways}, nil
}

func (c *client) address(ctx context.Context) (answer, error) {
	var transaction [12]byte
	rand.Read(transaction[:])
	if err := c.conn.SendDatagram(derp.AskAddress(transaction)); err != nil {
		return nil, err
	}
	select {
	case response := <-c.stun:
		found, err := derp.ReadAddress(response, transaction)
		return answer{"address": found.String(), "local": c.sockets[len(c.sockets)-1].Conn.LocalAddr().String()}, err
	case <-ctx.Done():
		return nil, errors.New("no answer came")
	}
}

// move goes on from another socket: the new path is probed first, as RFC 9000 section 9 has it.
func (c *client) move(ctx context.Context) (answer, error) {
	transport, err := c.socket()
	if err != nil {
		return nil, err
	}
	path, err := c.conn.AddPath(transport)
	if err != nil {
		return nil, err
	}
	if err := path.Probe(ctx); err != nil {
		return nil, err
	}
	return answer{}, path.Switch()
}

func (c *client) streams() answer {
	_, two := c.conn.OpenStream()
	_, one := c.conn.OpenUniStream()
	return answer{"refused": []string{fmt.Sprint(two), fmt.Sprint(one)}}
}

func (c *client) ended(ctx context.Context) (answer, error) {
	select {
	case <-c.conn.Context().Done():
	case <-ctx.Done():
		return nil, errors.New("it goes on")
	}
	cause := context.Cause(c.conn.Context())
	var transport *quic.TransportError
	var application *quic.ApplicationError
	var reset *quic.StatelessResetError
	switch {
	case errors.As(cause, &reset):
		return answer{"by": "reset"}, nil
	case errors.As(cause, &transport):
		return answer{"by": "transport", "code": uint64(transport.ErrorCode), "remote": transport.Remote, "text": transport.ErrorMessage}, nil
	case errors.As(cause, &application):
		return answer{"by": "application", "code": uint64(application.ErrorCode), "remote": application.Remote, "text": application.ErrorMessage}, nil
	}
	return answer{"by": "", "text": fmt.Sprint(cause)}, nil
}

func (c *client) obey(words []string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	number := func(at int) int {
		value, err := strconv.Atoi(words[at])
		if err != nil {
			panic(err)
		}
		return value
	}
	switch words[0] {
	case "dial":
		return c.dial(ctx, words[1])
	case "send":
		to, err := hex.DecodeString(words[1])
		if err != nil {
			return nil, err
		}
		data := make([]byte, number(2))
		rand.Read(data)
		sum := sha256.Sum256(data)
		return answer{"sum": hex.EncodeToString(sum[:])}, c.send(to, data)
	case "receive":
		return c.receive(ctx)
	case "echoes":
		return c.echoes(ctx, number(1), number(2))
	case "address":
		return c.address(ctx)
	case "move":
		return c.move(ctx)
	case "streams":
		return c.streams(), nil
	case "tickets":
		return answer{"count": c.tickets.count}, nil
	case "garbage":
		if err := c.conn.SendDatagram([]byte("no frame")); err != nil {
			return nil, err
		}
		return c.ended(ctx)
	case "ended":
		return c.ended(ctx)
	case "close":
		return answer{}, c.conn.CloseWithError(0, "that is all")
	}
	return nil, fmt.Errorf("what is %q?", words[0])
}

func obeyOrders() {
	out := json.NewEncoder(os.Stdout)
	orders := bufio.NewScanner(os.Stdin)
	one := &client{}
	for orders.Scan() {
		said, err := one.obey(strings.Fields(orders.Text()))
		if err != nil {
			said = answer{"ok": false, "error": err.Error()}
		} else {
			said["ok"] = true
		}
		if err := out.Encode(said); err != nil {
			panic(err)
		}
	}
}

func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1 << 20), // a meta certificate has a smaller one
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func relay() error {
	shown, err := certificate()
	if err != nil {
		return err
	}
	sock, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	transport := &quic.Transport{Conn: sock, VerifySourceAddress: func(net.Addr) bool { return true }} // by a Retry
	config := &tls.Config{Certificates: []tls.Certificate{shown}, NextProtos: []string{protocol}}
	listener, err := transport.Listen(config, settings)
	if err != nil {
		return err
	}
	pin := sha256.Sum256(shown.Certificate[0])
	err = json.NewEncoder(os.Stdout).Encode(answer{
		"ok":   true,
		"port": sock.LocalAddr().(*net.UDPAddr).Port,
		"pin":  "sha256-raw:" + hex.EncodeToString(pin[:]),
	})
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept(context.Background())
		if err != nil {
			return err
		}
		go func() {
			if err := serve(conn); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

// serve brings back what a client sends to itself, the way it came, and answers its questions.
func serve(conn *quic.Conn) error {
	stream, err := conn.AcceptStream(context.Background())
	if err != nil {
		return err
	}
	keys, err := derp.NewKeys()
	if err != nil {
		return err
	}
	from := bufio.NewReader(stream)
	if err := keys.Answer(from, stream); err != nil {
		return err
	}
	go func() {
		for {
			datagram, err := conn.ReceiveDatagram(context.Background())
			if err != nil {
				return
			}
			if derp.IsStun(datagram) {
				place := conn.RemoteAddr().(*net.UDPAddr).AddrPort()
				_ = conn.SendDatagram(derp.AnswerAddress(datagram, netip.AddrPortFrom(place.Addr().Unmap(), place.Port())))
			} else if frame, err := derp.Decode(datagram); err == nil && frame.Type == derp.SendPacket {
				_ = conn.SendDatagram(derp.Encode(derp.RecvPacket, frame.Payload))
			}
		}
	}()
	for {
		frame, err := derp.Read(from)
		if err != nil {
			return err
		}
		switch frame.Type {
		case derp.SendPacket:
			_, err = stream.Write(derp.Encode(derp.RecvPacket, frame.Payload))
		case derp.Ping:
			_, err = stream.Write(derp.Encode(derp.Pong, frame.Payload[:8]))
		}
		if err != nil {
			return err
		}
	}
}

func main() {
	isRelay := flag.Bool("relay", false, "be a relay")
	flag.Parse()
	if !*isRelay {
		obeyOrders()
	} else if err := relay(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
