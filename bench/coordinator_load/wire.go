package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The layers, as bytes. Nothing here allocates per message but growing buffers; the genuine libraries would cost this program
// more than the server costs the machine. What leaves is what they would write: header and body of a yamux frame as websocket
// messages of their own, masked.

const (
	yamuxData, yamuxWindow, yamuxPing, yamuxGoAway = 0, 1, 2, 3
	flagSYN, flagACK, flagFIN, flagRST             = 1, 2, 4, 8
	windowBytes                                    = 256 << 10

	kindInvoke, kindMessage, kindError, kindClose, kindCloseSend = 1, 2, 3, 5, 6

	opContinuation, opBinary, opClose, opPing, opPong = 0, 2, 8, 9, 10
)

// appendMessage appends one masked websocket frame.
func appendMessage(b []byte, opcode byte, mask [4]byte, payload []byte) []byte {
	b = append(b, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = append(b, 0x80|126)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b = append(b, 0x80|127)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = append(b, mask[:]...)
	start := len(b)
	b = append(b, payload...)
	masked := b[start:]
	word := uint64(binary.LittleEndian.Uint32(mask[:]))
	word |= word << 32
	for len(masked) >= 8 {
		binary.LittleEndian.PutUint64(masked, binary.LittleEndian.Uint64(masked)^word)
		masked = masked[8:]
	}
	for i := range masked {
		masked[i] ^= mask[i&3]
	}
	return b
}

func yamuxHeader(kind byte, flags uint16, stream, length uint32) [12]byte {
	var h [12]byte
	h[1] = kind
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], stream)
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

// appendPacket appends one dRPC packet in one frame; everything sent here is far below the 64 KiB at which packets are split.
func appendPacket(b []byte, kind byte, message uint64, data []byte) []byte {
	b = append(b, kind<<1|1, 1)
	b = binary.AppendUvarint(b, message)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// Protobuf, by hand.

func appendBytes(b []byte, field int, data []byte) []byte {
	b = binary.AppendUvarint(b, uint64(field<<3|2))
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

func appendVarint(b []byte, field int, value uint64) []byte {
	b = binary.AppendUvarint(b, uint64(field<<3))
	return binary.AppendUvarint(b, value)
}

var errProtobuf = errors.New("protobuf does not parse")

// eachField visits the fields of a message: bytes of length-delimited ones, the value of varints.
func eachField(b []byte, visit func(field int, data []byte, value uint64) error) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return errProtobuf
		}
		b = b[n:]
		var data []byte
		var value uint64
		switch tag & 7 {
		case 0:
			if value, n = binary.Uvarint(b); n <= 0 {
				return errProtobuf
			}
			b = b[n:]
		case 1:
			if len(b) < 8 {
				return errProtobuf
			}
			b = b[8:]
		case 2:
			length, n := binary.Uvarint(b)
			if n <= 0 || length > uint64(len(b)-n) {
				return errProtobuf
			}
			data, b = b[n:n+int(length)], b[n+int(length):]
		case 5:
			if len(b) < 4 {
				return errProtobuf
			}
			b = b[4:]
		default:
			return errProtobuf
		}
		if err := visit(int(tag>>3), data, value); err != nil {
			return err
		}
	}
	return nil
}

// nodeTemplate is what of a peer's node never changes, and stands behind id and as_of.
func nodeTemplate(index int) []byte {
	key := append([]byte("np"), make([]byte, 32)...)
	binary.BigEndian.PutUint64(key[26:], uint64(index)+1)
	var b []byte
	b = appendBytes(b, 3, key)
	b = appendBytes(b, 4, fmt.Appendf(nil, "discokey:%064x", index+1))
	b = appendVarint(b, 5, 999)
	latency := appendBytes(nil, 1, []byte("999-v4"))
	latency = append(latency, 2<<3|1)
	latency = binary.LittleEndian.AppendUint64(latency, 0x3f50624dd2f1a9fc) // 0.001
	b = appendBytes(b, 6, latency)
	for _, endpoint := range []string{"192.168.1.23:41641", "172.17.0.1:41641", "203.0.113.77:41641", "[2001:db8:1234::77]:41641"} {
		b = appendBytes(b, 10, []byte(endpoint))
	}
	return b
}

// appendUpdate appends CoordinateRequest{update_self{node}} with the sender's index as id and the time as as_of.
func appendUpdate(b []byte, index int, nanos int64, addresses, template []byte, scratch *[]byte) []byte {
	var stamp [32]byte
	asOf := appendVarint(stamp[:0], 1, uint64(nanos/1e9))
	asOf = appendVarint(asOf, 2, uint64(nanos%1e9))
	node := appendVarint((*scratch)[:0], 1, uint64(index))
	node = appendBytes(node, 2, asOf)
	node = append(node, template...)
	node = append(node, addresses...)
	*scratch = node
	inner := 1 + uvarintLen(uint64(len(node))) + len(node)
	b = binary.AppendUvarint(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(inner))
	return appendBytes(b, 1, node)
}

func uvarintLen(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// appendTunnel appends CoordinateRequest{add_tunnel{id}}.
func appendTunnel(b []byte, id [16]byte) []byte {
	return appendBytes(b, 3, appendBytes(nil, 1, id[:]))
}

// update is one peer update of a response, as far as the bench cares.
type update struct {
	kind   uint64
	sender int // from node.id
	nanos  int64
}

const updateNode = 1

// eachUpdate visits the peer updates of a CoordinateResponse; an error in it is an error here.
func eachUpdate(message []byte, visit func(update)) error {
	return eachField(message, func(field int, data []byte, _ uint64) error {
		if field == 2 && len(data) > 0 {
			return fmt.Errorf("the server says: %s", data)
		}
		if field != 1 {
			return nil
		}
		u := update{sender: -1}
		err := eachField(data, func(field int, data []byte, value uint64) error {
			switch field {
			case 2:
				return readNode(data, &u)
			case 3:
				u.kind = value
			}
			return nil
		})
		if err == nil {
			visit(u)
		}
		return err
	})
}

func readNode(node []byte, u *update) error {
	u.sender = 0 // proto3 leaves noughts out
	return eachField(node, func(field int, data []byte, value uint64) error {
		switch field {
		case 1:
			u.sender = int(value)
		case 2:
			return eachField(data, func(field int, _ []byte, value uint64) error {
				if field == 1 {
					u.nanos += int64(value) * 1e9
				} else if field == 2 {
					u.nanos += int64(value)
				}
				return nil
			})
		}
		return nil
	})
}
