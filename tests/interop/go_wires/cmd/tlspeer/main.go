// Command tlspeer is a client by crypto/tls: it speaks DERP with a relay through everything that TLS 1.3 can do to a
// stream, and prints what came of it, a line of JSON each.  No line says anything that two servers may differ in: keys,
// times, and how bytes were cut into records.
//
//	tlspeer [-version 1.2] [-curves X25519MLKEM768,P-384] 127.0.0.1:8443
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"interopwires/derp"
)

const patience = 60 * time.Second

type line struct {
	Did  string `json:"did"`
	Came string `json:"came"`
}

var (
	out    = json.NewEncoder(os.Stdout)
	groups = map[string]tls.CurveID{"X25519MLKEM768": tls.X25519MLKEM768, "X25519": tls.X25519, "P-256": tls.CurveP256, "P-384": tls.CurveP384}
)

func say(did string, came ...any) {
	if err := out.Encode(line{did, strings.TrimSpace(fmt.Sprintln(came...))}); err != nil {
		panic(err)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

type tickets struct{ count int }

func (t *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (t *tickets) Put(_ string, state *tls.ClientSessionState) {
	if state != nil {
		t.count++
	}
}

// session is a connection that has become DERP.
type session struct {
	conn *tls.Conn
	from *bufio.Reader
	keys *derp.Keys
}

func dial(config *tls.Config, address string) *tls.Conn {
	conn := must(tls.Dial("tcp", address, config))
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		panic(err)
	}
	return conn
}

func open(config *tls.Config, address string) *session {
	one := &session{conn: dial(config, address), keys: must(derp.NewKeys())}
	one.from = bufio.NewReader(one.conn)
	if err := one.keys.Call(one.from, one.conn, address); err != nil {
		panic(err)
	}
	return one
}

func pattern(number, size int) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint32(nil, uint32(number)), (size+3)/4)[:size]
}

// back reads packets that it sent to itself, and says what they were.
func (s *session) back(count int) string {
	sum, size := sha256.New(), 0
	for got := 0; got < count; {
		frame := must(derp.Read(s.from))
		if frame.Type != derp.RecvPacket {
			continue
		}
		if !bytes.Equal(frame.Payload[:derp.KeyBytes], s.keys.Own[:]) {
			return "of somebody else"
		}
		sum.Write(frame.Payload[derp.KeyBytes:])
		size += len(frame.Payload) - derp.KeyBytes
		got++
	}
	return fmt.Sprintf("%d packets, %d bytes, %s", count, size, hex.EncodeToString(sum.Sum(nil))[:16])
}

func (s *session) packet(number, size int) []byte {
	return derp.Encode(derp.SendPacket, s.keys.Own[:], pattern(number, size))
}

// cut sends bytes as records of so many each.
func (s *session) cut(data []byte, size int) {
	for len(data) > 0 {
		sent := must(s.conn.Write(data[:min(size, len(data))]))
		data = data[sent:]
	}
}

// end reads to the end: an EOF is one that the other side has announced by close_notify.
func end(from io.Reader) string {
	_, err := io.Copy(io.Discard, from)
	var alert tls.AlertError
	switch {
	case err == nil:
		return "close_notify"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "cut off"
	case errors.As(err, &alert):
		return alert.Error()
	}
	return err.Error()
}

func pages(config *tls.Config, address string) {
	ways := &http.Transport{TLSClientConfig: config, MaxConnsPerHost: 1}
	defer ways.CloseIdleConnections()
	client := &http.Client{Transport: ways, Timeout: patience}
	for _, path := range []string{"/", "/derp/probe", "/generate_204", "/robots.txt", "/derp"} {
		response := must(client.Get("https://" + address + path))
		body := must(io.ReadAll(response.Body))
		sum := sha256.Sum256(body)
		say("GET "+path, response.StatusCode, len(body), hex.EncodeToString(sum[:8]))
	}
}

func packets(config *tls.Config, address string) {
	one := open(config, address)
	state := one.conn.ConnectionState()
	say("handshake", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), "ALPN", state.NegotiatedProtocol,
		"retry", state.HelloRetryRequest, "group", state.CurveID)

	for number, size := range []int{0, 1, 1280, 16_000, 16_384, 65_536} {
		must(one.conn.Write(one.packet(number, size)))
		say(fmt.Sprintf("packet of %d bytes", size), one.back(1))
	}

	var many []byte
	for number := range 24 {
		many = append(many, one.packet(number, 1280)...)
	}
	for _, size := range []int{16_384, 4_001, 1_322, 700} {
		one.cut(many, size)
		say(fmt.Sprintf("24 packets in records of %d bytes", size), one.back(24))
	}

	one.cut(one.packet(1, 3), 1) // 40 records
	say("a packet a byte a record", one.back(1))

	// So many that both sides have had to take new keys, where the server's are good for a few dozen records.
	whole := ""
	for number := range 200 {
		must(one.conn.Write(one.packet(number, 100)))
		whole += one.back(1)
	}
	sum := sha256.Sum256([]byte(whole))
	say("200 round trips", hex.EncodeToString(sum[:8]))

	must(one.conn.Write(derp.Encode(derp.Ping, []byte("12345678"))))
	for {
		frame := must(derp.Read(one.from))
		if frame.Type == derp.Pong {
			say("ping", string(frame.Payload))
			break
		}
	}
	// The last words and the goodbye in one go.
	must(one.conn.Write(one.packet(9, 500)))
	if err := one.conn.CloseWrite(); err != nil {
		panic(err)
	}
	say("close_notify right behind a packet", end(one.from))
	one.conn.Close()
}

// endings has the server end connections for what was sent: its last words come before its goodbye.
func endings(config *tls.Config, address string) {
	bad := open(config, address)
	must(bad.conn.Write(derp.Encode(derp.SendPacket, []byte("too short"))))
	say("a frame that is none", end(bad.from))

	refused := dial(config, address)
	must(refused.Write([]byte("GET /derp HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")))
	from := bufio.NewReader(refused)
	response := must(http.ReadResponse(from, nil))
	say("no upgrade", response.StatusCode, must(io.ReadAll(response.Body)))
	say("and then", end(from))
}

// forged changes a bit of what it sends from some moment on, as somebody on the way might.
type forged struct {
	net.Conn
	begins bool
}

func (f *forged) Write(data []byte) (int, error) {
	if f.begins {
		data = bytes.Clone(data)
		data[len(data)-1] ^= 1
	}
	return f.Conn.Write(data)
}

func forgery(config *tls.Config, address string) {
	wire := &forged{Conn: must(net.Dial("tcp", address))}
	conn := tls.Client(wire, config)
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		panic(err)
	}
	must(conn.Write([]byte("GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n")))
	from := bufio.NewReader(conn)
	say("before a forgery", must(http.ReadResponse(from, nil)).StatusCode)
	wire.begins = true
	must(conn.Write([]byte("GET /derp/probe HTTP/1.1\r\nHost: x\r\n\r\n")))
	say("a forged record", end(from))
}

func main() {
	version := flag.String("version", "1.3", "of TLS")
	curves := flag.String("curves", "", "key exchanges, the one with a share first")
	flag.Parse()
	kept := &tickets{}
	config := &tls.Config{
		InsecureSkipVerify:          true, // not what is looked at here
		DynamicRecordSizingDisabled: true,
		ClientSessionCache:          kept,
		MinVersion:                  tls.VersionTLS12,
		MaxVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"http/1.1"},
	}
	if *version == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	for _, name := range strings.Split(*curves, ",") {
		if name != "" {
			config.CurvePreferences = append(config.CurvePreferences, groups[name])
		}
	}
	packets(config, flag.Arg(0))
	endings(config, flag.Arg(0))
	forgery(config, flag.Arg(0))
	pages(config, flag.Arg(0))
	say("tickets", kept.count)
}
