package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/coder/websocket"
	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
)

// upgradeVerdict: the genuine HTTP side was sent this request for /derp.
type upgradeVerdict struct {
	Request string            `json:"request"`
	Status  int               `json:"status"` // 0: no HTTP answer, DERP followed at once
	Raw     string            `json:"raw,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
}

func upgrades() (out []upgradeVerdict) {
	server := newServer()
	defer server.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.AddWebSocketSupport(server, derpserver.Handler(server)))
	web := &http.Server{Handler: mux}
	go web.Serve(listener)
	defer web.Close()

	socket := "Connection: Upgrade\r\nUpgrade: websocket\r\n"
	version, key := "Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	derp := "Sec-WebSocket-Protocol: derp\r\n"
	for _, request := range []struct{ method, headers string }{
		{"GET", "Connection: Upgrade\r\nUpgrade: DERP\r\n"},
		{"GET", "Upgrade: derp\r\n"},
		{"POST", "Upgrade: DeRp\r\nContent-Length: 0\r\n"},
		{"GET", "Connection: Upgrade\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n"},
		{"GET", "Connection: Upgrade\r\nUpgrade: DERP\r\nDerp-Fast-Start: true\r\n"},
		{"GET", "Connection: Upgrade\r\nUpgrade: DERP\r\nIdeal-Node: 1a\r\n"},
		{"GET", ""},
		{"GET", "Connection: Upgrade\r\nUpgrade: h2c\r\n"},
		{"GET", "Connection: Upgrade\r\nUpgrade: derp, websocket\r\n"},
		{"GET", "Connection: Upgrade\r\nUpgrade: WebSocket\r\n"},
		{"GET", socket + version + key + derp},
		{"GET", socket + version + key + "Sec-WebSocket-Protocol: foo, DERP\r\nOrigin: https://elsewhere.example\r\n"},
		{"GET", socket + version + key + derp + "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"},
		{"GET", "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" + version + key + derp},
		{"POST", socket + version + key + derp + "Content-Length: 0\r\n"},
		{"GET", "Upgrade: websocket\r\n" + version + key + derp},
		{"GET", socket + "Sec-WebSocket-Version: 8\r\n" + key + derp},
		{"GET", socket + key + derp},
		{"GET", socket + version + derp},
		{"GET", socket + version + "Sec-WebSocket-Key: c2hvcnQ=\r\n" + derp},
		{"GET", socket + version + "Sec-WebSocket-Key: !!!!\r\n" + derp},
		{"GET", socket + version + key + key + derp},
	} {
		head := fmt.Sprintf("%s /derp HTTP/1.1\r\nHost: relay.example\r\n%s\r\n", request.method, request.headers)
		out = append(out, upgrade(listener.Addr().String(), head))
	}
	return out
}

func upgrade(address, head string) upgradeVerdict {
	conn, err := net.Dial("tcp", address)
	check(err)
	defer conn.Close()
	_, err = conn.Write([]byte(head))
	check(err)
	verdict := upgradeVerdict{Request: head}
	var raw bytes.Buffer
	reader := bufio.NewReader(conn)
	if first, err := reader.Peek(1); err == nil && first[0] == 0x01 {
		return verdict
	}
	response, err := http.ReadResponse(bufio.NewReader(io.TeeReader(reader, &raw)), nil)
	check(err)
	verdict.Status = response.StatusCode
	if response.StatusCode == http.StatusSwitchingProtocols {
		if strings.EqualFold(response.Header.Get("Upgrade"), "DERP") {
			verdict.Raw = raw.String()[:strings.Index(raw.String(), "\r\n\r\n")+4]
		}
	} else {
		body, err := io.ReadAll(response.Body)
		check(err)
		verdict.Body = string(body)
	}
	verdict.Headers = map[string]string{}
	for name, values := range response.Header {
		if name != "Date" {
			verdict.Headers[strings.ToLower(name)] = strings.Join(values, ", ")
		}
	}
	return verdict
}

// webSocketFrame: one message of `Length` payload bytes (byte i is i mod 251), as the genuine library frames it.
type webSocketFrame struct {
	From   string `json:"from"`
	Opcode int    `json:"opcode"`
	Length int    `json:"length"`
	Head   string `json:"head"` // the first bytes, mask included
	Sha256 string `json:"sha256"`
}

func webSocketFrames() (out []webSocketFrame) {
	for _, n := range []int{0, 1, 5, 125, 126, 127, 1317, 65535, 65536, 100000} {
		payload := make([]byte, n)
		for i := range payload {
			payload[i] = byte(i % 251)
		}
		for _, from := range []string{"client", "server"} {
			head, sum := webSocketWire(from, func(c *websocket.Conn) error {
				return c.Write(context.Background(), websocket.MessageBinary, payload)
			})
			out = append(out, webSocketFrame{from, 2, n, head, sum})
		}
	}
	for _, from := range []string{"client", "server"} {
		head, sum := webSocketWire(from, func(c *websocket.Conn) error {
			go c.Close(websocket.StatusNormalClosure, "bye")
			return nil
		})
		out = append(out, webSocketFrame{from, 8, 5, head, sum})
	}
	return out
}

// webSocketWire lets one side act and returns what it put on the wire after the upgrade.
func webSocketWire(from string, act func(*websocket.Conn) error) (head, sum string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	done := make(chan struct{})
	var fromServer *recorder
	web := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, nil)
			check(err)
			if from == "server" {
				check(act(c))
			}
			<-done
			c.CloseNow()
		}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			fromServer = c.(*recorder)
			return ctx
		},
	}
	go web.Serve(recordingListener{listener})
	defer web.Close()
	var fromClient *recorder
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := net.Dial(network, address)
		fromClient = &recorder{Conn: c}
		return fromClient, err
	}}
	c, _, err := websocket.Dial(context.Background(), "ws://"+listener.Addr().String(), &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	check(err)
	wire := fromClient
	if from == "client" {
		check(act(c))
	} else {
		wire = fromServer
	}
	frame := wire.afterHead()
	close(done)
	c.CloseNow()
	digest := sha256.Sum256(frame)
	return hex.EncodeToString(frame[:min(14, len(frame))]), hex.EncodeToString(digest[:])
}

type recordingListener struct{ net.Listener }

func (l recordingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &recorder{Conn: c}, err
}

// stunRequest: is this datagram a request that deserves an answer.
type stunRequest struct {
	Name string `json:"name"`
	Hex  string `json:"hex"`
	Tx   string `json:"tx,omitempty"` // empty: no
}

// stunResponse: what the client reads out of this datagram.
type stunResponse struct {
	Name    string `json:"name"`
	Hex     string `json:"hex"`
	OK      bool   `json:"ok"`
	Tx      string `json:"tx,omitempty"`
	Address string `json:"address,omitempty"`
	Port    int    `json:"port,omitempty"`
}

func stunVectors() (requests []stunRequest, responses []stunResponse) {
	tx := stun.TxID(counting(1, 12))
	good := stun.Request(tx)
	changed := func(at int, to byte) []byte {
		out := bytes.Clone(good)
		out[at] = to
		return out
	}
	ask := func(name string, datagram []byte) {
		request := stunRequest{Name: name, Hex: hex.EncodeToString(datagram)}
		if got, err := stun.ParseBindingRequest(datagram); err == nil {
			request.Tx = hex.EncodeToString(got[:])
		}
		requests = append(requests, request)
	}
	ask("good", good)
	ask("empty", nil)
	ask("head only", good[:20])
	ask("cut short", good[:39])
	ask("one byte more", append(bytes.Clone(good), 0))
	ask("an attribute after the fingerprint", append(bytes.Clone(good), 0x80, 0x22, 0, 0))
	ask("not a request", changed(0, 1))
	ask("another method", changed(1, 2))
	ask("top bits set", changed(0, 0xc0))
	ask("no cookie", changed(4, 0))
	ask("another length", changed(3, 0x15))
	ask("another transaction", changed(8, 0xff))
	ask("other software", changed(24, 'T'))
	ask("software as unknown type", changed(21, 0x23))
	ask("bad fingerprint", changed(39, 0))
	ask("fingerprint as unknown type", changed(33, 0x29))
	// The same faults under a right fingerprint: each must be noticed for itself.
	resealed := func(datagram []byte) []byte {
		body := datagram[:len(datagram)-8]
		sum := crc32.ChecksumIEEE(body) ^ 0x5354554e
		return binary.BigEndian.AppendUint32(append(bytes.Clone(body), 0x80, 0x28, 0, 4), sum)
	}
	ask("good, resealed", resealed(good))
	ask("not a request, resealed", resealed(changed(0, 1)))
	ask("another method, resealed", resealed(changed(1, 2)))
	ask("top bits set, resealed", resealed(changed(0, 0xc0)))
	ask("no cookie, resealed", resealed(changed(4, 0)))
	ask("another length, resealed", resealed(changed(3, 0x15)))
	ask("other software, resealed", resealed(changed(24, 'T')))
	ask("software as unknown type, resealed", resealed(changed(21, 0x23)))
	ask("software longer than the rest, resealed", resealed(changed(23, 0x80)))
	ask("padded software before, resealed", resealed(append(append(bytes.Clone(good[:20]), 0x80, 0x22, 0, 3, 'f', 'o', 'o', 0), good[20:]...)))
	ask("no software, resealed", resealed(append(bytes.Clone(good[:20]), good[32:]...)))

	answer := func(name string, datagram []byte) {
		response := stunResponse{Name: name, Hex: hex.EncodeToString(datagram)}
		if got, from, err := stun.ParseResponse(datagram); err == nil {
			response.OK, response.Tx = true, hex.EncodeToString(got[:])
			response.Address, response.Port = from.Addr().String(), int(from.Port())
		}
		responses = append(responses, response)
	}
	four := stun.Response(tx, netip.MustParseAddrPort("192.0.2.7:41641"))
	six := stun.Response(tx, netip.MustParseAddrPort("[2001:db8::7]:41641"))
	answer("ipv4", four)
	answer("ipv6", six)
	edited := func(datagram []byte, edits map[int]byte) []byte {
		out := bytes.Clone(datagram)
		for at, to := range edits {
			out[at] = to
		}
		return out
	}
	answer("empty", nil)
	answer("cut short", four[:31])
	answer("bytes after the end", append(bytes.Clone(four), 1, 2, 3))
	answer("a request", good)
	answer("an empty attribute at the end", edited(append(bytes.Clone(four), 0x80, 0x99, 0, 0), map[int]byte{3: 16}))
	answer("half an attribute at the end", edited(append(bytes.Clone(four), 0x80, 0x99), map[int]byte{3: 14}))
	answer("length beyond the end", edited(four, map[int]byte{3: 24}))
	answer("no cookie", edited(four, map[int]byte{4: 0}))
	answer("top bits set", edited(four, map[int]byte{0: 0xc1}))
	answer("an error", edited(four, map[int]byte{0: 1, 1: 0x11}))
	answer("early number of the attribute", edited(four, map[int]byte{20: 0x80}))
	answer("plain address", edited(four, map[int]byte{20: 0, 21: 1}))
	answer("unknown attribute", edited(four, map[int]byte{21: 0x99}))
	answer("unknown family", edited(four, map[int]byte{25: 3}))
	answer("ipv6 family with 4 bytes", edited(four, map[int]byte{25: 2}))
	answer("no attributes", edited(four[:20], map[int]byte{3: 0}))
	answer("attribute longer than the message", edited(four, map[int]byte{23: 40}))
	plainThenMasked := append(bytes.Clone(six), four[20:]...)
	answer("two addresses", edited(plainThenMasked, map[int]byte{3: 36}))
	answer("masked before plain", edited(append(bytes.Clone(four), edited(six[20:], map[int]byte{0: 0, 1: 1})...), map[int]byte{3: 36}))
	return requests, responses
}

// afterHead waits until what was sent holds a whole frame after the HTTP head, and returns that frame.
func (r *recorder) afterHead() []byte {
	for {
		r.mu.Lock()
		data := bytes.Clone(r.sent)
		r.mu.Unlock()
		if _, frame, ok := bytes.Cut(data, []byte("\r\n\r\n")); ok && len(frame) >= 2 {
			if total := frameLength(frame); total > 0 && len(frame) >= total {
				return frame[:total]
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// frameLength is 0 as long as the head is not complete.
func frameLength(frame []byte) int {
	length, at := int(frame[1]&0x7f), 2
	switch length {
	case 126:
		if len(frame) < 4 {
			return 0
		}
		length, at = int(binary.BigEndian.Uint16(frame[2:])), 4
	case 127:
		if len(frame) < 10 {
			return 0
		}
		length, at = int(binary.BigEndian.Uint64(frame[2:])), 10
	}
	if frame[1]&0x80 != 0 {
		at += 4
	}
	return at + length
}
