// Command wgpeer is a genuine WireGuard device on UDP, whose packets go through stdin and stdout.
//
// It prints its UDP port on the first line.  A line "send HEX" on stdin is a packet for the tunnel, "load SECONDS" puts
// the device under load for so long, as a flood of handshakes would, and is answered by "loaded"; "packet HEX" on stdout
// is what came out of the tunnel.
package main

import (
	"bufio"
	"encoding/hex"
	"flag"
	"fmt"
	"log"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"
	"github.com/tailscale/wireguard-go/tun/tuntest"
)

func main() {
	private := flag.String("private", "", "its private key, hex")
	peer := flag.String("peer", "", "the public key of its one peer, hex")
	psk := flag.String("psk", strings.Repeat("00", 32), "the preshared key, hex")
	endpoint := flag.String("endpoint", "", "address and port of the peer")
	allowed := flag.String("allowed", "", "the prefix that is the peer's")
	flag.Parse()

	tunnel := tuntest.NewChannelTUN()
	logger := &device.Logger{Verbosef: device.DiscardLogf, Errorf: log.Printf}
	wireguard := device.NewDevice(tunnel.TUN(), conn.NewStdNetBind(), logger)
	config := fmt.Sprintf("private_key=%s\nlisten_port=0\npublic_key=%s\npreshared_key=%s\nendpoint=%s\nallowed_ip=%s\n",
		*private, *peer, *psk, *endpoint, *allowed)
	if err := wireguard.IpcSet(config); err != nil {
		log.Fatal(err)
	}
	if err := wireguard.Up(); err != nil {
		log.Fatal(err)
	}
	state, err := wireguard.IpcGet()
	if err != nil {
		log.Fatal(err)
	}
	for _, line := range strings.Split(state, "\n") {
		if port, found := strings.CutPrefix(line, "listen_port="); found {
			fmt.Println(port)
		}
	}
	go func() {
		for packet := range tunnel.Inbound {
			fmt.Printf("packet %x\n", packet)
		}
	}()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		op, argument, _ := strings.Cut(lines.Text(), " ")
		switch op {
		case "send":
			packet, err := hex.DecodeString(argument)
			if err != nil {
				log.Fatal(err)
			}
			tunnel.Outbound <- packet
		case "load":
			seconds, err := strconv.Atoi(argument)
			if err != nil {
				log.Fatal(err)
			}
			loadUntil(wireguard).Store(time.Now().Add(time.Duration(seconds) * time.Second).UnixNano())
			fmt.Println("loaded")
		default:
			log.Fatalf("no such op: %q", op)
		}
	}
}

// loadUntil is the field of the device that says until when it takes itself for loaded.
func loadUntil(wireguard *device.Device) *atomic.Int64 {
	field := reflect.ValueOf(wireguard).Elem().FieldByName("rate").FieldByName("underLoadUntil")
	return (*atomic.Int64)(unsafe.Pointer(field.UnsafeAddr()))
}
