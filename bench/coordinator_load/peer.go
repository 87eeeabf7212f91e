package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	coordinateStream = 1
	mapsStream       = 3
	dialDeadline     = 60 * time.Second
	bufferBytes      = 4 << 10
)

// peer is one agent or client: a socket, a coordination stream, and perhaps a stream of DERP maps.
type peer struct {
	run       *run
	index     int
	conn      net.Conn
	addresses []byte
	template  []byte
	mask      [4]byte

	mu      sync.Mutex // guards what follows: the pacer and the reader both write
	message uint64
	out     []byte
	scratch []byte
	packet  []byte

	received [2]uint32 // of each stream, since its last window update; the reader's alone
	packets  [2][]byte // unfinished dRPC packets
}

// dial upgrades and opens the streams. greeting is the first message after Invoke, and all others follow at once.
func (p *peer) dial(o *options, address, path, token string, messages [][]byte) error {
	conn, err := net.DialTimeout("tcp", address, dialDeadline)
	if err != nil {
		return err
	}
	p.conn = conn
	conn.SetDeadline(time.Now().Add(dialDeadline))
	var nonce [16]byte
	binary.LittleEndian.PutUint64(nonce[:], rand.Uint64())
	binary.LittleEndian.PutUint32(p.mask[:], rand.Uint32())
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\n"+
		"Coder-Session-Token: %s\r\nSec-Websocket-Key: %s\r\nSec-Websocket-Version: 13\r\nUpgrade: websocket\r\n\r\n",
		path, address, token, base64.StdEncoding.EncodeToString(nonce[:]))
	buffer := make([]byte, bufferBytes)
	filled, head := 0, -1
	for head < 0 {
		n, err := conn.Read(buffer[filled:])
		if err != nil {
			return fmt.Errorf("upgrade: %w", err)
		}
		filled += n
		if head = strings.Index(string(buffer[:filled]), "\r\n\r\n"); head < 0 && filled == len(buffer) {
			return fmt.Errorf("upgrade: no end of the answer in %d bytes", filled)
		}
	}
	if !strings.HasPrefix(string(buffer[:filled]), "HTTP/1.1 101 ") {
		return fmt.Errorf("upgrade refused: %q", buffer[:filled])
	}
	conn.SetDeadline(time.Time{})
	go p.read(buffer[:filled], head+4)
	p.mu.Lock()
	defer p.mu.Unlock()
	if o.maps {
		if err := p.open(mapsStream, "/coder.tailnet.v2.Tailnet/StreamDERPMaps", []byte{}); err != nil {
			return err
		}
		if err := p.data(mapsStream, appendPacket(nil, kindCloseSend, 3, nil)); err != nil {
			return err
		}
	}
	if err := p.open(coordinateStream, "/coder.tailnet.v2.Tailnet/Coordinate", messages[0]); err != nil {
		return err
	}
	p.message = 2
	for _, message := range messages[1:] {
		if err := p.send(message); err != nil {
			return err
		}
	}
	return nil
}

// open sends what the genuine client sends: the SYN, and Invoke with the first message in one frame.
func (p *peer) open(stream uint32, rpc string, first []byte) error {
	header := yamuxHeader(yamuxWindow, flagSYN, stream, 0)
	if err := p.write(header[:]); err != nil {
		return err
	}
	packets := appendPacket(nil, kindInvoke, 1, []byte(rpc))
	return p.data(stream, appendPacket(packets, kindMessage, 2, first))
}

// update sends this peer's node with a time in it.
func (p *peer) update(nanos int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.send(appendUpdate(nil, p.index, nanos, p.addresses, p.template, &p.scratch))
}

func (p *peer) send(message []byte) error {
	p.message++
	p.packet = appendPacket(p.packet[:0], kindMessage, p.message, message)
	return p.data(coordinateStream, p.packet)
}

func (p *peer) data(stream uint32, body []byte) error {
	header := yamuxHeader(yamuxData, 0, stream, uint32(len(body)))
	if err := p.write(header[:]); err != nil {
		return err
	}
	return p.write(body)
}

// write is one message and one system call, as the genuine library has it.
func (p *peer) write(payload []byte) error {
	p.out = appendMessage(p.out[:0], opBinary, p.mask, payload)
	_, err := p.conn.Write(p.out)
	return err
}

func (p *peer) control(opcode byte, payload []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.conn.Write(appendMessage(nil, opcode, p.mask, payload))
	return err
}

// read serves everything that arrives, until the run closes the socket.
func (p *peer) read(websocket []byte, from int) {
	err := p.serve(websocket, from)
	if err != nil && !p.run.over.Load() {
		p.run.fail(fmt.Errorf("peer %d: %w", p.index, err))
	}
}

func (p *peer) serve(raw []byte, from int) error {
	var stream []byte // yamux
	rest := raw[from:]
	for {
		for {
			size, opcode, payload, err := parseMessage(rest)
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			rest = rest[size:]
			switch opcode {
			case opBinary, opContinuation:
				stream = append(stream, payload...)
			case opPing:
				if err := p.control(opPong, payload); err != nil {
					return err
				}
			case opClose:
				return fmt.Errorf("closed by the server: %q", payload)
			}
		}
		used, err := p.frames(stream)
		if err != nil {
			return err
		}
		stream = append(stream[:0], stream[used:]...)
		copy(raw[:cap(raw)], rest)
		raw = raw[:len(rest)]
		if cap(raw)-len(raw) < 1<<10 {
			raw = append(make([]byte, 0, 2*cap(raw)), raw...)
		}
		n, err := p.conn.Read(raw[len(raw):cap(raw)])
		if err != nil {
			return err
		}
		raw = raw[:len(raw)+n]
		rest = raw
	}
}

// parseMessage cuts one whole websocket frame off; size 0: not here yet.
func parseMessage(b []byte) (size int, opcode byte, payload []byte, err error) {
	if len(b) < 2 {
		return 0, 0, nil, nil
	}
	if b[1]&0x80 != 0 {
		return 0, 0, nil, fmt.Errorf("a masked frame from the server")
	}
	head, length := 2, uint64(b[1])
	switch length {
	case 126:
		head = 4
		if len(b) < head {
			return 0, 0, nil, nil
		}
		length = uint64(binary.BigEndian.Uint16(b[2:]))
	case 127:
		head = 10
		if len(b) < head {
			return 0, 0, nil, nil
		}
		length = binary.BigEndian.Uint64(b[2:])
	}
	if uint64(len(b)-head) < length {
		return 0, 0, nil, nil
	}
	size = head + int(length)
	return size, b[0] & 0x0f, b[head:size], nil
}

// frames serves whole yamux frames and returns how many bytes they were.
func (p *peer) frames(b []byte) (int, error) {
	used := 0
	for {
		rest := b[used:]
		if len(rest) < 12 {
			return used, nil
		}
		kind, flags := rest[1], binary.BigEndian.Uint16(rest[2:])
		stream, length := binary.BigEndian.Uint32(rest[4:]), binary.BigEndian.Uint32(rest[8:])
		switch kind {
		case yamuxData:
			if uint64(len(rest)-12) < uint64(length) {
				return used, nil
			}
			used += int(length)
			if err := p.body(stream, rest[12:12+length]); err != nil {
				return used, err
			}
		case yamuxPing:
			if flags&flagSYN != 0 {
				header := yamuxHeader(yamuxPing, flagACK, 0, length)
				if err := p.control(opBinary, header[:]); err != nil {
					return used, err
				}
			}
		case yamuxGoAway:
			return used, fmt.Errorf("go away, code %d", length)
		}
		used += 12
		if flags&(flagFIN|flagRST) != 0 {
			return used, fmt.Errorf("the server ended stream %d", stream)
		}
	}
}

func (p *peer) body(stream uint32, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	which := int(stream) / 2
	if which > 1 {
		return fmt.Errorf("data on stream %d", stream)
	}
	if p.received[which] += uint32(len(body)); p.received[which] >= windowBytes/2 {
		header := yamuxHeader(yamuxWindow, 0, stream, p.received[which])
		p.received[which] = 0
		if err := p.control(opBinary, header[:]); err != nil {
			return err
		}
	}
	pending := body
	if len(p.packets[which]) > 0 {
		p.packets[which] = append(p.packets[which], body...)
		pending = p.packets[which]
	}
	for {
		size, kind, data, err := parsePacket(pending)
		if err != nil {
			return err
		}
		if size == 0 {
			p.packets[which] = append(p.packets[which][:0], pending...)
			return nil
		}
		pending = pending[size:]
		switch kind {
		case kindMessage:
			if stream == coordinateStream {
				if err := eachUpdate(data, p.run.delivered); err != nil {
					return err
				}
			} else {
				p.run.maps.Add(1)
			}
		case kindError, kindClose, kindCloseSend:
			return fmt.Errorf("the server ended the call: kind %d %q", kind, data)
		}
	}
}

// parsePacket cuts one dRPC packet off; size 0: not here yet. Only a DERP map could be split over frames, and ours is small.
func parsePacket(b []byte) (size int, kind byte, data []byte, err error) {
	if len(b) < 4 {
		return 0, 0, nil, nil
	}
	if b[0]&1 == 0 {
		return 0, 0, nil, fmt.Errorf("a split packet")
	}
	at := 1
	var length uint64
	for range 3 { // stream, message, length
		value, n := binary.Uvarint(b[at:])
		if n < 0 {
			return 0, 0, nil, fmt.Errorf("bad varint")
		}
		if n == 0 {
			return 0, 0, nil, nil
		}
		at += n
		length = value
	}
	if uint64(len(b)-at) < length {
		return 0, 0, nil, nil
	}
	size = at + int(length)
	return size, b[0] >> 1 & 0x3f, b[at:size], nil
}

func raiseLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}
