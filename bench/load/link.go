package main

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The frame types this program meets.
const (
	frameServerKey  = 0x01
	frameClientInfo = 0x02
	frameServerInfo = 0x03
	frameSendPacket = 0x04
	frameRecvPacket = 0x05
	framePing       = 0x12
	framePong       = 0x13

	headerBytes  = 5
	keyBytes     = 32
	maxFrame     = 1 << 20
	bufferBytes  = 256 << 10 // one read takes what many packets brought
	headBytes    = 4 << 10   // enough for a handshake; idle clients never get more
	dialDeadline = 20 * time.Second
)

// target is the relay under test.
type target struct {
	url       *url.URL
	address   string // host:port to dial
	tls       *tls.Config
	websocket bool
	floor     bool // the floor has no handshake and looks at no frame
	fastStart bool // as genuine clients do over TLS: request and ClientInfo in one write, no HTTP answer
	serverKey *[32]byte

	readBuffer int     // of the kernel, 0: as it likes
	readRate   float64 // bytes a second, 0: all that come
}

func parseTarget(raw string, floor, slowStart bool) (*target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	t := &target{url: u, address: u.Host, floor: floor}
	port := "80"
	switch u.Scheme {
	case "http", "ws":
	case "https", "wss":
		port = "443"
		// The floor passes on what one receive decrypts to.  Several senders' frames stay whole there as long as each
		// write is one record; Go begins a connection with records of 1.4 KB and would cut a write of 5 KB into four.
		t.tls = &tls.Config{InsecureSkipVerify: true, ServerName: u.Hostname(), DynamicRecordSizingDisabled: floor}
	default:
		return nil, fmt.Errorf("%s: the scheme must be http, https, ws or wss", raw)
	}
	if u.Port() == "" {
		t.address = net.JoinHostPort(u.Hostname(), port)
	}
	t.websocket = strings.HasPrefix(u.Scheme, "ws")
	t.fastStart = t.tls != nil && !t.websocket && !floor && !slowStart
	return t, nil
}

// learnKey asks the relay for its key once, so that all logins can be prepared.
func (t *target) learnKey() error {
	if t.floor {
		return nil
	}
	who, err := newIdentity(nil)
	if err != nil {
		return err
	}
	l, err := dial(t, who, -1, -1)
	if err != nil {
		return err
	}
	return l.nc.Close()
}

// link is one connection: a socket, perhaps TLS, perhaps websocket, and the frames read from it.
// Reading belongs to one goroutine; writes are whole frames and may come from any.
type link struct {
	nc       net.Conn
	identity *identity

	buf        []byte // DERP stream: buf[start:end] is unread
	start, end int

	ws *websocketReader // nil without websocket
}

// dial connects and logs in; self and to tell the floor whose bytes go where (to < 0: nowhere).
func dial(t *target, who *identity, self, to int) (*link, error) {
	dialer := t.dialer()
	nc, err := dialer.Dial("tcp", t.address)
	if err != nil {
		return nil, err
	}
	if t.readRate > 0 {
		nc = &pacedConn{Conn: nc, perSecond: t.readRate}
	}
	nc.SetDeadline(time.Now().Add(dialDeadline))
	l := &link{nc: nc, identity: who, buf: make([]byte, headBytes)}
	if t.tls != nil {
		l.nc = tls.Client(nc, t.tls)
	}
	if err := l.login(t, self, to); err != nil {
		nc.Close()
		return nil, err
	}
	nc.SetDeadline(time.Time{})
	return l, nil
}

func (l *link) login(t *target, self, to int) error {
	request := upgradeRequest(t, self, to)
	if t.fastStart && t.serverKey != nil {
		// The relay still sends its key, first.
		if _, err := l.nc.Write(append(request, l.identity.info...)); err != nil {
			return err
		}
		if _, err := l.expect(frameServerKey); err != nil {
			return err
		}
		_, err := l.expect(frameServerInfo)
		return err
	}
	if _, err := l.nc.Write(request); err != nil {
		return err
	}
	if err := l.readHead(); err != nil {
		return err
	}
	if t.websocket {
		l.ws = &websocketReader{pong: func(payload []byte) { l.nc.Write(websocketFrame(0xA, payload)) }}
		early := append([]byte{}, l.buf[l.start:l.end]...)
		l.start, l.end = 0, 0
		n, err := l.ws.decode(early, l.buf)
		if err != nil {
			return err
		}
		l.end = n
	}
	if t.floor {
		return nil
	}
	payload, err := l.expect(frameServerKey)
	if err != nil {
		return err
	}
	if t.serverKey == nil { // the first connection only learns the key
		if len(payload) < 40 {
			return fmt.Errorf("ServerKey of %d bytes", len(payload))
		}
		t.serverKey = new([32]byte)
		copy(t.serverKey[:], payload[8:40])
		return nil
	}
	info := l.identity.info
	if t.websocket {
		info = websocketFrame(2, info)
	}
	if _, err := l.nc.Write(info); err != nil {
		return err
	}
	payload, err = l.expect(frameServerInfo)
	if err != nil {
		return err
	}
	return l.identity.open(payload)
}

func upgradeRequest(t *target, self, to int) []byte {
	var b bytes.Buffer
	path := t.url.EscapedPath()
	if path == "" {
		path = "/derp"
	}
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: derpload\r\nConnection: Upgrade\r\n", path, t.url.Host)
	if t.websocket {
		var nonce [16]byte
		binary.NativeEndian.PutUint64(nonce[:], rand.Uint64())
		fmt.Fprintf(&b, "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: derp\r\n")
		fmt.Fprintf(&b, "Sec-WebSocket-Key: %s\r\n", base64.StdEncoding.EncodeToString(nonce[:]))
	} else {
		fmt.Fprintf(&b, "Upgrade: DERP\r\n")
	}
	if t.fastStart && t.serverKey != nil {
		fmt.Fprintf(&b, "Derp-Fast-Start: 1\r\n")
	}
	if t.floor {
		fmt.Fprintf(&b, "Floor-Self: %d\r\nFloor-To: %d\r\n", self, to)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// readHead reads the HTTP answer, which must be 101; bytes after it stay in the buffer.
func (l *link) readHead() error {
	for {
		head, rest, whole := bytes.Cut(l.buf[l.start:l.end], []byte("\r\n\r\n"))
		if whole {
			l.start = l.end - len(rest)
			if status := string(bytes.SplitN(head, []byte("\r\n"), 2)[0]); !strings.Contains(status, " 101 ") {
				return fmt.Errorf("the relay answered %q, want status %d", status, http.StatusSwitchingProtocols)
			}
			return nil
		}
		if l.end == len(l.buf) {
			return errors.New("the relay's HTTP answer is too large")
		}
		n, err := l.nc.Read(l.buf[l.end:])
		l.end += n
		if err != nil && n == 0 {
			return fmt.Errorf("reading the HTTP answer: %w", err)
		}
	}
}

// expect reads one frame, which must be of this type.
func (l *link) expect(kind byte) ([]byte, error) {
	for {
		got, payload, ok, err := l.frame()
		if err != nil {
			return nil, err
		}
		if ok {
			if got != kind {
				return nil, fmt.Errorf("frame of type 0x%02x, want 0x%02x", got, kind)
			}
			return payload, nil
		}
		if err := l.fill(); err != nil {
			return nil, fmt.Errorf("waiting for frame 0x%02x: %w", kind, err)
		}
	}
}

// grow gives an active client the buffer it needs to take many packets in one read.
func (l *link) grow() {
	if len(l.buf) < bufferBytes {
		fresh := make([]byte, bufferBytes)
		l.end = copy(fresh, l.buf[l.start:l.end])
		l.start, l.buf = 0, fresh
	}
}

// release drops the buffers of a client that will stay idle.
func (l *link) release() { l.buf, l.start, l.end, l.identity, l.ws = nil, 0, 0, nil, nil }

// fill reads once.
func (l *link) fill() error {
	if l.start > 0 {
		l.end = copy(l.buf, l.buf[l.start:l.end])
		l.start = 0
	}
	if l.end == len(l.buf) {
		return errors.New("a frame does not fit the buffer")
	}
	if l.ws != nil {
		n, err := l.ws.read(l.nc, l.buf[l.end:])
		l.end += n
		return err
	}
	n, err := l.nc.Read(l.buf[l.end:])
	l.end += n
	if n > 0 {
		return nil
	}
	return err
}

// frame takes the next whole frame out of the buffer; the payload is valid until the next fill.
func (l *link) frame() (kind byte, payload []byte, ok bool, err error) {
	unread := l.buf[l.start:l.end]
	if len(unread) < headerBytes {
		return 0, nil, false, nil
	}
	length := int(binary.BigEndian.Uint32(unread[1:]))
	if length > maxFrame {
		return 0, nil, false, fmt.Errorf("frame of type 0x%02x announces %d bytes", unread[0], length)
	}
	if len(unread) < headerBytes+length {
		return 0, nil, false, nil
	}
	l.start += headerBytes + length
	return unread[0], unread[headerBytes : headerBytes+length], true, nil
}

// other deals with frames that are no packets.
func (l *link) other(kind byte, payload []byte) {
	if kind == framePing && len(payload) >= 8 {
		pong := append([]byte{framePong, 0, 0, 0, 8}, payload[:8]...)
		if l.ws != nil {
			pong = websocketFrame(2, pong)
		}
		l.nc.Write(pong)
	}
}

// drain reads a client that only sends, so that keep-alives and notices do not pile up.
func (l *link) drain() {
	for l.fill() == nil {
		for {
			kind, payload, ok, err := l.frame()
			if err != nil || !ok {
				break
			}
			l.other(kind, payload)
		}
	}
}

func (l *link) String() string { return hex.EncodeToString(l.identity.public[:4]) }
