// Command derpvectors prints, as one JSON document, what the genuine DERP packages say on the wire and how they judge
// what others say: the golden vectors of tests/vectors/derp.json.
//
// Everything is deterministic but the nonces of the boxes and the masks of the websocket.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"

	"go4.org/mem"
	"tailscale.com/types/key"
)

type document struct {
	Comment        string             `json:"comment"`
	Keys           map[string]keyPair `json:"keys"`
	MeshKey        string             `json:"mesh_key"`
	Session        []frame            `json:"session"`
	Received       []received         `json:"received"`
	ClientReads    []clientVerdict    `json:"client_reads"`
	ServerReads    []serverVerdict    `json:"server_reads"`
	ClientInfoJSON []infoVerdict      `json:"client_info_json"`
	ServerInfoJSON []infoVerdict      `json:"server_info_json"`
	Upgrades       []upgradeVerdict   `json:"upgrades"`
	WebSocket      []webSocketFrame   `json:"websocket"`
	StunRequests   []stunRequest      `json:"stun_requests"`
	StunResponses  []stunResponse     `json:"stun_responses"`
}

type keyPair struct {
	Private string `json:"private"`
	Public  string `json:"public"`
}

var (
	serverKey = fixedKey(0x01)
	keyA      = fixedKey(0x28)
	keyB      = fixedKey(0x5a)
	keyMesh   = fixedKey(0x8c)
	keyProber = fixedKey(0xbe)
	meshHex   = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

// fixedKey counts up from its first byte.
func fixedKey(first byte) key.NodePrivate {
	var raw [32]byte
	for i := range raw {
		raw[i] = first + byte(i)
	}
	return key.NodePrivateFromRaw32(mem.B(raw[:]))
}

func pair(private key.NodePrivate) keyPair {
	text, err := private.MarshalText()
	check(err)
	return keyPair{string(text), hexOf(private.Public())}
}

func hexOf(public key.NodePublic) string { return hex.EncodeToString(public.AppendTo(nil)) }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "derpvectors:", err)
		os.Exit(1)
	}
}

func main() {
	log.SetOutput(io.Discard) // the genuine server speaks of every refusal
	doc := document{
		Comment: "Made by `make derp-vectors` with tailscale.com v1.102.5; do not edit. Boxes have random nonces, websocket frames random masks.",
		Keys: map[string]keyPair{
			"server": pair(serverKey), "a": pair(keyA), "b": pair(keyB), "mesh": pair(keyMesh), "prober": pair(keyProber),
		},
		MeshKey: meshHex,
	}
	doc.Session, doc.Received = runSession()
	doc.ClientReads = clientReads()
	doc.ServerReads = serverReads()
	doc.ClientInfoJSON, doc.ServerInfoJSON = infoJSON()
	doc.Upgrades = upgrades()
	doc.WebSocket = webSocketFrames()
	doc.StunRequests, doc.StunResponses = stunVectors()
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", " ")
	check(out.Encode(doc))
}
