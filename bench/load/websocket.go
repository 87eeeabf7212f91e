package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// websocketReader undoes RFC 6455 framing: payloads of binary messages are one DERP stream.  Lean on purpose: the
// generator must cost less than the relay it measures.
type websocketReader struct {
	raw  []byte // scratch for one read
	head []byte // an unfinished frame header

	left    uint64 // payload bytes of the current frame still to come
	opcode  byte
	mask    [4]byte // the floor returns our own masked frames
	masked  bool
	at      int
	control []byte

	pong func([]byte)
}

// read reads the socket once and writes stream bytes to out.
func (w *websocketReader) read(r io.Reader, out []byte) (int, error) {
	if want := min(64<<10, len(out)); len(w.raw) < want && len(w.raw) < 64<<10 {
		w.raw = make([]byte, want)
	}
	n, err := r.Read(w.raw[:min(len(w.raw), len(out))])
	if n == 0 {
		return 0, err
	}
	return w.decode(w.raw[:n], out)
}

// decode takes raw bytes; out must have room for as many.
func (w *websocketReader) decode(raw, out []byte) (int, error) {
	written := 0
	for len(raw) > 0 {
		if w.left == 0 {
			var whole bool
			if raw, whole = w.header(raw); !whole {
				return written, nil
			}
		}
		n := int(min(uint64(len(raw)), w.left))
		piece := raw[:n]
		raw, w.left = raw[n:], w.left-uint64(n)
		if w.masked {
			unmask(piece, w.mask, w.at)
			w.at += n
		}
		switch w.opcode {
		case 0, 2:
			written += copy(out[written:], piece)
		case 8:
			return written, errors.New("the relay closed the websocket")
		case 9, 10:
			w.control = append(w.control, piece...)
			if w.left == 0 {
				if w.opcode == 9 {
					w.pong(w.control)
				}
				w.control = w.control[:0]
			}
		default:
			return written, fmt.Errorf("websocket message of opcode %d", w.opcode)
		}
	}
	return written, nil
}

// header collects a frame header; whole is false when raw ended first.
func (w *websocketReader) header(raw []byte) (rest []byte, whole bool) {
	for len(raw) > 0 {
		w.head = append(w.head, raw[0])
		raw = raw[1:]
		if len(w.head) < 2 {
			continue
		}
		size, length := 2, uint64(w.head[1]&0x7f)
		switch length {
		case 126:
			size = 4
		case 127:
			size = 10
		}
		w.masked = w.head[1]&0x80 != 0
		if w.masked {
			size += 4
		}
		if len(w.head) < size {
			continue
		}
		switch length {
		case 126:
			length = uint64(binary.BigEndian.Uint16(w.head[2:]))
		case 127:
			length = binary.BigEndian.Uint64(w.head[2:])
		}
		if w.masked {
			w.mask, w.at = [4]byte(w.head[size-4:]), 0
		}
		w.opcode, w.left, w.head = w.head[0]&0x0f, length, w.head[:0]
		return raw, true
	}
	return nil, false
}

func unmask(b []byte, mask [4]byte, at int) {
	for i := range b {
		b[i] ^= mask[(at+i)&3]
	}
}

// websocketFrame is a whole message of a client: final, masked with a key of its own.
func websocketFrame(opcode byte, payload []byte) []byte {
	b := []byte{0x80 | opcode, 0x80}
	switch {
	case len(payload) < 126:
		b[1] |= byte(len(payload))
	case len(payload) < 1<<16:
		b[1] |= 126
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	default:
		b[1] |= 127
		b = binary.BigEndian.AppendUint64(b, uint64(len(payload)))
	}
	var mask [4]byte
	binary.NativeEndian.PutUint32(mask[:], rand.Uint32())
	b = append(b, mask[:]...)
	at := len(b)
	b = append(b, payload...)
	unmask(b[at:], mask, 0)
	return b
}
