package main

import "encoding/binary"

// Every packet begins with a stamp: sender u32, receiver u32, number u64, then two clock readings in nanoseconds:
// when the packet was due and when it was written.
const stampBytes = 32

type stamp struct {
	src, dst uint32
	number   uint64
	due, at  int64
}

func readStamp(b []byte) stamp {
	return stamp{
		src: binary.BigEndian.Uint32(b), dst: binary.BigEndian.Uint32(b[4:]), number: binary.BigEndian.Uint64(b[8:]),
		due: int64(binary.BigEndian.Uint64(b[16:])), at: int64(binary.BigEndian.Uint64(b[24:])),
	}
}

// template is one packet ready for the wire, websocket framing and mask included; only its stamp changes.
type template struct {
	wire []byte
	at   int     // where the stamp is
	mask [8]byte // of the stamp's bytes, zero without websocket
}

func newTemplate(dst [32]byte, size int, websocket bool) template {
	frame := make([]byte, headerBytes+keyBytes+size)
	frame[0] = frameSendPacket
	binary.BigEndian.PutUint32(frame[1:], uint32(keyBytes+size))
	copy(frame[headerBytes:], dst[:])
	for i := headerBytes + keyBytes + stampBytes; i < len(frame); i++ {
		frame[i] = byte(i)
	}
	t := template{wire: frame, at: headerBytes + keyBytes}
	if websocket {
		// The mask is random but stays with the template: a relay cannot know, and masking anew costs only us.
		t.wire = websocketFrame(2, frame)
		head := len(t.wire) - len(frame)
		t.at += head
		for i := range t.mask {
			t.mask[i] = t.wire[head-4+(headerBytes+keyBytes+i)&3]
		}
	}
	return t
}

// put writes the stamp into a copy of the template that begins at b[0].
func (t *template) put(b []byte, s stamp) {
	b = b[t.at : t.at+stampBytes]
	mask := binary.BigEndian.Uint64(t.mask[:])
	binary.BigEndian.PutUint64(b, (uint64(s.src)<<32|uint64(s.dst))^mask)
	binary.BigEndian.PutUint64(b[8:], s.number^mask)
	binary.BigEndian.PutUint64(b[16:], uint64(s.due)^mask)
	binary.BigEndian.PutUint64(b[24:], uint64(s.at)^mask)
}
