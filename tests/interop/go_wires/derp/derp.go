// Package derp is what of DERP 2 a peer needs that brings its own transport: frames, both sides of the handshake, and
// the STUN messages that ask where one comes from.
package derp

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"golang.org/x/crypto/nacl/box"
)

const (
	ServerKey  = 0x01
	ClientInfo = 0x02
	ServerInfo = 0x03
	SendPacket = 0x04
	RecvPacket = 0x05
	Ping       = 0x12
	Pong       = 0x13

	KeyBytes   = 32
	nonceBytes = 24
	maxBytes   = 1 << 20
	magic      = "DERP\xf0\x9f\x94\x91"
)

type Frame struct {
	Type    byte
	Payload []byte
}

func Encode(kind byte, parts ...[]byte) []byte {
	frame := make([]byte, 5)
	for _, part := range parts {
		frame = append(frame, part...)
	}
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-5))
	return frame
}

func Read(from io.Reader) (Frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxBytes {
		return Frame{}, fmt.Errorf("a frame of %d bytes", size)
	}
	payload := make([]byte, size)
	_, err := io.ReadFull(from, payload)
	return Frame{head[0], payload}, err
}

// Decode takes a datagram that is one whole frame.
func Decode(datagram []byte) (Frame, error) {
	if len(datagram) < 5 || int(binary.BigEndian.Uint32(datagram[1:])) != len(datagram)-5 {
		return Frame{}, fmt.Errorf("a datagram of %d bytes is no frame", len(datagram))
	}
	return Frame{datagram[0], datagram[5:]}, nil
}

// Keys of one side; the other's are known after the handshake.
type Keys struct {
	Own, Other, private [KeyBytes]byte
}

func NewKeys() (*Keys, error) {
	public, private, err := box.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Keys{Own: *public, private: *private}, nil
}

func (k *Keys) seal(value any) ([]byte, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var nonce [nonceBytes]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	return box.Seal(nonce[:], text, &nonce, &k.Other, &k.private), nil
}

func (k *Keys) open(sealed []byte, value any) error {
	if len(sealed) < nonceBytes {
		return fmt.Errorf("a box of %d bytes", len(sealed))
	}
	text, good := box.Open(nil, sealed[nonceBytes:], (*[nonceBytes]byte)(sealed), &k.Other, &k.private)
	if !good {
		return fmt.Errorf("a box that is not for us")
	}
	return json.Unmarshal(text, value)
}

// Call asks for DERP and shakes hands as a client; what was read ahead stays in from.
func (k *Keys) Call(from *bufio.Reader, to io.Writer, host string) error {
	request := "GET /derp HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
	if _, err := io.WriteString(to, request); err != nil {
		return err
	}
	answer, err := http.ReadResponse(from, nil)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(body)))
	}
	frame, err := Read(from)
	if err != nil {
		return err
	}
	if frame.Type != ServerKey || len(frame.Payload) < len(magic)+KeyBytes || string(frame.Payload[:len(magic)]) != magic {
		return fmt.Errorf("frame %#x where ServerKey belongs", frame.Type)
	}
	copy(k.Other[:], frame.Payload[len(magic):])
	about, err := k.seal(map[string]any{"version": 2, "CanAckPings": false})
	if err != nil {
		return err
	}
	if _, err := to.Write(Encode(ClientInfo, k.Own[:], about)); err != nil {
		return err
	}
	if frame, err = Read(from); err != nil {
		return err
	}
	if frame.Type != ServerInfo {
		return fmt.Errorf("frame %#x where ServerInfo belongs", frame.Type)
	}
	return k.open(frame.Payload, &struct{}{})
}

// Answer is the relay's side of Call.
func (k *Keys) Answer(from *bufio.Reader, to io.Writer) error {
	request, err := http.ReadRequest(from)
	if err != nil {
		return err
	}
	if request.URL.Path != "/derp" || !strings.EqualFold(request.Header.Get("Upgrade"), "DERP") {
		return fmt.Errorf("%s %s, Upgrade: %q", request.Method, request.URL, request.Header.Get("Upgrade"))
	}
	answer := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\r\n"
	if _, err := to.Write(append([]byte(answer), Encode(ServerKey, []byte(magic), k.Own[:])...)); err != nil {
		return err
	}
	frame, err := Read(from)
	if err != nil {
		return err
	}
	if frame.Type != ClientInfo || len(frame.Payload) < KeyBytes {
		return fmt.Errorf("frame %#x where ClientInfo belongs", frame.Type)
	}
	copy(k.Other[:], frame.Payload)
	if err := k.open(frame.Payload[KeyBytes:], &struct{}{}); err != nil {
		return err
	}
	about, err := k.seal(map[string]any{"version": 2})
	if err != nil {
		return err
	}
	_, err = to.Write(Encode(ServerInfo, about))
	return err
}

const (
	stunHeadBytes   = 20
	stunCookie      = 0x2112a442
	stunFingerprint = 0x5354554e
)

func stunHead(kind uint16, transaction [12]byte, size uint16) []byte {
	head := binary.BigEndian.AppendUint16(nil, kind)
	head = binary.BigEndian.AppendUint16(head, size)
	head = binary.BigEndian.AppendUint32(head, stunCookie)
	return append(head, transaction[:]...)
}

// AskAddress is a STUN binding request as relays answer it: with their SOFTWARE, and a FINGERPRINT at its end.
func AskAddress(transaction [12]byte) []byte {
	request := append(stunHead(0x0001, transaction, 12+8), "\x80\x22\x00\x08tailnode"...)
	sum := crc32.ChecksumIEEE(request) ^ stunFingerprint
	return binary.BigEndian.AppendUint32(append(request, 0x80, 0x28, 0x00, 0x04), sum)
}

// IsStun tells STUN messages from frames.
func IsStun(datagram []byte) bool {
	return len(datagram) >= stunHeadBytes && binary.BigEndian.Uint32(datagram[4:]) == stunCookie
}

// AnswerAddress is the answer to a binding request that came from an IPv4 address.
func AnswerAddress(request []byte, from netip.AddrPort) []byte {
	response := stunHead(0x0101, [12]byte(request[8:stunHeadBytes]), 12)
	response = append(response, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01)
	response = binary.BigEndian.AppendUint16(response, from.Port()^(stunCookie>>16))
	address := from.Addr().Unmap().As4()
	return binary.BigEndian.AppendUint32(response, binary.BigEndian.Uint32(address[:])^stunCookie)
}

// ReadAddress takes a binding response with an IPv4 address.
func ReadAddress(response []byte, transaction [12]byte) (netip.AddrPort, error) {
	var none netip.AddrPort
	if !IsStun(response) || [12]byte(response[8:stunHeadBytes]) != transaction {
		return none, fmt.Errorf("another transaction's")
	}
	for rest := response[stunHeadBytes:]; len(rest) >= 4; {
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if len(rest) < 4+size {
			break
		}
		if kind == 0x0020 && size == 8 {
			port := binary.BigEndian.Uint16(rest[6:]) ^ (stunCookie >> 16)
			var address [4]byte
			binary.BigEndian.PutUint32(address[:], binary.BigEndian.Uint32(rest[8:])^stunCookie)
			return netip.AddrPortFrom(netip.AddrFrom4(address), port), nil
		}
		rest = rest[min(len(rest), 4+(size+3)/4*4):]
	}
	return none, fmt.Errorf("a response without an address")
}
