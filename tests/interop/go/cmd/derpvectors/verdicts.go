package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// sentinel follows every frame under test: what comes before it was the frame's doing.
var sentinel = [8]byte{'s', 'e', 'n', 't', 'i', 'n', 'e', 'l'}

// clientVerdict: the genuine client was given this frame after its handshake.
type clientVerdict struct {
	Hex     string  `json:"hex"`
	Verdict string  `json:"verdict"` // "message", "skipped" or "error"
	Message message `json:"message,omitempty"`
}

func frameOf(t derp.FrameType, payload []byte) []byte {
	var out bytes.Buffer
	check(derp.WriteFrame(bufio.NewWriter(&out), t, payload))
	return out.Bytes()
}

// counting is n bytes that count up from first.
func counting(first, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(first + i)
	}
	return out
}

func clientReads() (out []clientVerdict) {
	lengths := map[derp.FrameType][]int{
		derp.FrameServerKey:     {0, 40},
		derp.FrameServerInfo:    {0, 23, 24, 53},
		derp.FrameSendPacket:    {37},
		derp.FrameRecvPacket:    {0, 31, 32, 37},
		derp.FrameKeepAlive:     {0, 3},
		derp.FrameNotePreferred: {1},
		derp.FramePeerGone:      {0, 31, 32, 33, 40},
		derp.FramePeerPresent:   {31, 32, 49, 50, 51, 60},
		derp.FrameForwardPacket: {70},
		derp.FrameWatchConns:    {0},
		derp.FrameClosePeer:     {32},
		derp.FramePing:          {0, 7, 8, 12},
		derp.FramePong:          {0, 7, 8, 12},
		derp.FrameRestarting:    {0, 7, 8, 12},
		0x00:                    {0, 9},
		0x0b:                    {4},
		0x16:                    {8},
		0xff:                    {1},
	}
	for t := range 256 {
		for _, n := range lengths[derp.FrameType(t)] {
			out = append(out, clientRead(frameOf(derp.FrameType(t), counting(t, n))))
		}
	}
	for _, text := range []string{"", "two of you share a key: stop one", "bad UTF-8: \xff\xc3 \xe2\x82", "\U0001f511"} {
		out = append(out, clientRead(frameOf(derp.FrameHealth, []byte(text))))
	}
	present := append(counting(1, 32), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7, 0xa2, 0xa9, 0x0c)
	out = append(out, clientRead(frameOf(derp.FramePeerPresent, present)))
	// A header that announces too much is enough for an error.
	out = append(out, clientRead([]byte{0x99, 0, 0x10, 0, 1}))
	return out
}

// clientRead plays a server: greets, swallows the ClientInfo, sends the frame and the sentinel.
func clientRead(input []byte) clientVerdict {
	inside, outside := net.Pipe()
	defer inside.Close()
	defer outside.Close()
	go io.Copy(io.Discard, outside)
	go func() {
		greeting := append([]byte(derp.Magic), serverKey.Public().AppendTo(nil)...)
		outside.Write(frameOf(derp.FrameServerKey, greeting))
		outside.Write(input)
		outside.Write(frameOf(derp.FramePong, sentinel[:]))
	}()
	client, err := derp.NewClient(keyA, inside, buffered(inside), quiet)
	check(err)
	verdict := clientVerdict{Hex: hex.EncodeToString(input)}
	m, err := client.Recv()
	switch {
	case err != nil:
		verdict.Verdict = "error"
	case m == derp.ReceivedMessage(derp.PongMessage(sentinel)):
		verdict.Verdict = "skipped"
	default:
		verdict.Verdict, verdict.Message = "message", describe(m)
	}
	return verdict
}

// serverVerdict: the genuine server was given this frame by a client that had logged in.
type serverVerdict struct {
	Hex    string `json:"hex"`
	Mesh   bool   `json:"mesh"` // the client has the mesh key
	Closed bool   `json:"closed"`
}

func serverReads() (out []serverVerdict) {
	lengths := map[derp.FrameType][]int{
		derp.FrameServerKey:     {0, 40},
		derp.FrameClientInfo:    {0, 56},
		derp.FrameServerInfo:    {24},
		derp.FrameSendPacket:    {0, 31, 32, 37},
		derp.FrameRecvPacket:    {0, 37},
		derp.FrameKeepAlive:     {0, 5},
		derp.FrameNotePreferred: {0, 1, 2},
		derp.FramePeerGone:      {33},
		derp.FramePeerPresent:   {51},
		derp.FrameForwardPacket: {0, 63, 64, 70},
		derp.FrameWatchConns:    {0, 1},
		derp.FrameClosePeer:     {0, 31, 32, 33},
		derp.FramePing:          {0, 7, 8, 12, 1000, 1001},
		derp.FramePong:          {0, 8},
		derp.FrameHealth:        {0, 4},
		derp.FrameRestarting:    {8},
		0x00:                    {0},
		0x0b:                    {4},
		0xff:                    {300},
	}
	for t := range 256 {
		for _, n := range lengths[derp.FrameType(t)] {
			for _, mesh := range []bool{false, true} {
				out = append(out, serverRead(frameOf(derp.FrameType(t), counting(t, n)), mesh))
			}
		}
	}
	return out
}

func serverRead(input []byte, mesh bool) serverVerdict {
	server := newServer()
	defer server.Close()
	var opts []derp.ClientOpt
	if mesh {
		k, err := key.ParseDERPMesh(meshHex)
		check(err)
		opts = append(opts, derp.MeshKey(k))
	}
	var log []received
	p := join(server, "x", "192.0.2.7:1", keyA, &log, opts...)
	defer p.wire.Close()
	go func() {
		p.wire.Conn.Write(input)
		p.wire.Conn.Write(frameOf(derp.FramePing, sentinel[:]))
	}()
	verdict := serverVerdict{Hex: hex.EncodeToString(input), Mesh: mesh}
	for {
		select {
		case m, ok := <-p.messages:
			if !ok {
				verdict.Closed = true
				return verdict
			}
			// An answer to a ping under test may have displaced the sentinel's: any pong says "alive".
			if m["type"] == "Pong" {
				return verdict
			}
		case <-time.After(10 * time.Second):
			check(io.ErrNoProgress)
		}
	}
}

// infoVerdict: how the JSON of a box is read.
type infoVerdict struct {
	Hex   string         `json:"hex"` // of the text: it may be bad UTF-8
	OK    bool           `json:"ok"`
	Value map[string]any `json:"value,omitempty"`
}

func infoJSON() (client, server []infoVerdict) {
	meshValue := `"` + meshHex + `"`
	for _, text := range []string{
		`{}`, `null`, ` {} `, ``, ` `, `[]`, `"x"`, `1`, `true`, `{} {}`, `{}x`, "\ufeff{}", `{"a":}`, `{"a":1,}`, `{'a':1}`,
		`{"version":2,"CanAckPings":true}`, `{"VERSION":3,"canackpings":true,"isprober":true,"appname":"x"}`,
		`{"version":2,"Version":5}`, `{"version":2,"version":null}`, `{"ver\u017fion":4}`, `{"mesh\u212aey":` + meshValue + `}`,
		`{"versIon":7,"unknown":{"version":9},"more":[1,2,{"x":null}]}`,
		`{"version":2.0}`, `{"version":2e0}`, `{"version":-0}`, `{"version":-1}`, `{"version":"2"}`, `{"version":true}`, `{"version":[2]}`,
		`{"version":9223372036854775807}`, `{"version":9223372036854775808}`, `{"version":-9223372036854775808}`, `{"version":-9223372036854775809}`, `{"version":02}`, `{"version":+2}`,
		`{"version":NaN}`, `{"x":NaN}`, `{"x":Infinity}`, `{"x":1e999}`, `{"x":-}`, `{"x":1.}`, `{"x":.5}`,
		`{"CanAckPings":1}`, `{"CanAckPings":"true"}`, `{"CanAckPings":null}`, `{"IsProber":0}`, `{"AppName":5}`, `{"AppName":null}`,
		`{"AppName":"caf\u00e9 \ud83d\ude00"}`, `{"AppName":"\ud800"}`, "{\"AppName\":\"bad \xff\xc3 utf8\"}", "{\"AppName\":\"a\nb\"}", "{\"AppName\":\"a\x00b\"}",
		`{"AppName":"\x"}`, `{"AppName":"\u12"}`, "{\"App\xffName\":\"x\"}", "\t\r\n{\"version\"\t:\n1}",
		`{"meshKey":` + meshValue + `}`, `{"MESHKEY":` + meshValue + `}`, `{"meshKey":"00112233445566778899AABBCCDDEEFF00112233445566778899aabbccddeeff"}`,
		`{"meshKey":""}`, `{"meshKey":null}`, `{"meshKey":5}`, `{"meshKey":"00"}`, `{"meshKey":" ` + meshHex + ` "}`, `{"meshKey":"` + meshHex + `0"}`,
		`{"meshKey":"` + meshHex[:63] + `g"}`, `{"meshKey":"` + meshHex[:62] + `é"}`, `{"meshKey":"` + meshHex + `","meshKey":"00"}`,
		`{"meshKey":"0000000000000000000000000000000000000000000000000000000000000000"}`,
	} {
		verdict := infoVerdict{Hex: hex.EncodeToString([]byte(text))}
		var info derp.ClientInfo
		if json.Unmarshal([]byte(text), &info) == nil {
			verdict.OK = true
			mesh := ""
			if !info.MeshKey.IsZero() {
				mesh = info.MeshKey.String()
			}
			verdict.Value = map[string]any{
				"mesh_key": mesh, "version": info.Version, "can_ack_pings": info.CanAckPings, "is_prober": info.IsProber, "app_name": info.AppName,
			}
		}
		client = append(client, verdict)
	}
	for _, text := range []string{
		`{}`, `null`, `[]`, `{"version":2}`, `{"Version":2,"tokenbucketbytespersecond":1000,"TOKENBUCKETBYTESBURST":5}`,
		`{"TokenBucketBytesPerSecond":1.5}`, `{"TokenBucketBytesPerSecond":null,"TokenBucketBytesBurst":-3}`, `{"TokenBucketBytesBurst":"1"}`, `{"version":`,
	} {
		verdict := infoVerdict{Hex: hex.EncodeToString([]byte(text))}
		var info derp.ServerInfo
		if json.Unmarshal([]byte(text), &info) == nil {
			verdict.OK = true
			verdict.Value = map[string]any{
				"version": info.Version, "bytes_per_second": info.TokenBucketBytesPerSecond, "burst": info.TokenBucketBytesBurst,
			}
		}
		server = append(server, verdict)
	}
	return client, server
}
