// Package uuid holds the 16 raw bytes that name agents, clients, users and workspaces on the wire.
package uuid

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
)

// ID is a UUID as raw bytes. It is comparable, so it serves as a map key.
type ID [16]byte

// New returns a random (version 4) ID.
func New() ID {
	var id ID
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Parse reads the 8-4-4-4-12 text form.
func Parse(text string) (ID, error) {
	var id ID
	if len(text) != 36 || strings.Count(text, "-") != 4 {
		return id, errors.New("not a UUID: " + text)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(raw) != len(id) {
		return id, errors.New("not a UUID: " + text)
	}
	copy(id[:], raw)
	return id, nil
}

// FromBytes takes the 16 bytes of a protobuf field.
func FromBytes(raw []byte) (ID, error) {
	var id ID
	if len(raw) != len(id) {
		return id, errors.New("a UUID has 16 bytes")
	}
	copy(id[:], raw)
	return id, nil
}

func (id ID) String() string {
	digits := hex.EncodeToString(id[:])
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:]
}
