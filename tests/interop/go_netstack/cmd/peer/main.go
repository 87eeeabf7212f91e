// Command peer is gVisor's stack, configured as genuine nodes configure it, whose IPv6 packets travel in UDP
// datagrams: one packet in each.
//
//	peer -address fd7a:115c:a1e0::b -peer fd7a:115c:a1e0::a [-cubic] [-rack]
//
// It prints the UDP port it listens on, and sends to whoever sent last.  Ports of its stack:
//
//	7  echoes until the end of the stream
//	9  reads to the end of the stream, answers with the SHA-256 of what came in hex, and closes
//	19 reads a line with a number, answers with so many random bytes and their SHA-256 in hex, and closes
//	20 accepts and resets
//	53 (UDP) echoes
//
// Commands on standard input, one a line, each answered with a line of JSON on standard output:
//
//	put PORT BYTES     dials the peer, sends random bytes, half-closes, reads a SHA-256 in hex and compares
//	get PORT BYTES     dials the peer, sends the number and a newline, reads so many bytes and their SHA-256, compares
//	many PORT COUNT    dials so many times at once; each sends a line and reads it back
//	refused PORT       dials a port where nobody listens
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nic = 1
	mtu = 1280
	// What genuine nodes set: wgengine/netstack's numbers for Linux.
	receiveDefault, receiveMax = 1 << 20, 8 << 20
	sendDefault, sendMax       = 1 << 20, 6 << 20
)

func must(err tcpip.Error) {
	if err != nil {
		log.Fatal(err)
	}
}

func newStack(address tcpip.Address, link stack.LinkEndpoint, cubic, rack bool) *stack.Stack {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol6},
	})
	set := func(option tcpip.SettableTransportProtocolOption) {
		must(s.SetTransportProtocolOption(tcp.ProtocolNumber, option))
	}
	sack := tcpip.TCPSACKEnabled(true)
	set(&sack)
	recovery := tcpip.TCPRecovery(0)
	if rack {
		recovery = tcpip.TCPRACKLossDetection
	}
	set(&recovery)
	congestion := tcpip.CongestionControlOption("reno")
	if cubic {
		congestion = "cubic"
	}
	set(&congestion)
	set(&tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: receiveDefault, Max: receiveMax})
	set(&tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: sendDefault, Max: sendMax})
	must(s.CreateNIC(nic, link))
	must(s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv6.ProtocolNumber,
		AddressWithPrefix: address.WithPrefix(),
	}, stack.AddressProperties{}))
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nic}})
	return s
}

// carry moves packets between the stack and the socket.
func carry(link *channel.Endpoint, socket *net.UDPConn) {
	var peer atomic.Pointer[netip.AddrPort]
	go func() {
		for {
			packet := link.ReadContext(context.Background())
			if packet == nil {
				return
			}
			if to := peer.Load(); to != nil {
				view := packet.ToView()
				socket.WriteToUDPAddrPort(view.AsSlice(), *to)
				view.Release()
			}
			packet.DecRef()
		}
	}()
	go func() {
		for {
			data := make([]byte, 2048)
			n, from, err := socket.ReadFromUDPAddrPort(data)
			if err != nil {
				log.Fatal(err)
			}
			if old := peer.Load(); old == nil || *old != from {
				peer.Store(&from)
			}
			packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(data[:n])})
			link.InjectInbound(ipv6.ProtocolNumber, packet)
			packet.DecRef()
		}
	}()
}

func random(size int) []byte {
	data := make([]byte, size)
	rand.Read(data)
	return data
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func serve(s *stack.Stack) {
	forwarder := tcp.NewForwarder(s, 0, 8192, func(request *tcp.ForwarderRequest) {
		port := request.ID().LocalPort
		if port != 7 && port != 9 && port != 19 && port != 20 {
			request.Complete(true)
			return
		}
		var queue waiter.Queue
		endpoint, err := request.CreateEndpoint(&queue)
		request.Complete(false)
		if err != nil {
			return
		}
		conn := gonet.NewTCPConn(&queue, endpoint)
		if port == 20 {
			endpoint.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true, Timeout: 0})
			conn.Close()
			return
		}
		go answer(conn, port)
	})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	conn, err := gonet.DialUDP(s, &tcpip.FullAddress{Port: 53}, nil, ipv6.ProtocolNumber)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		data := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(data)
			if err != nil {
				log.Fatal(err)
			}
			conn.WriteTo(data[:n], from)
		}
	}()
}

func answer(conn *gonet.TCPConn, port uint16) {
	defer conn.Close()
	switch port {
	case 7:
		io.Copy(conn, conn)
	case 9:
		hash := sha256.New()
		io.Copy(hash, conn)
		io.WriteString(conn, hex.EncodeToString(hash.Sum(nil)))
	case 19:
		line, err := bufio.NewReader(conn).ReadString('\n')
		size, bad := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || bad != nil {
			return
		}
		data := random(size)
		conn.Write(data)
		io.WriteString(conn, digest(data))
	}
}

type result struct {
	OK      bool    `json:"ok"`
	Error   string  `json:"error,omitempty"`
	Seconds float64 `json:"seconds"`
	Count   int     `json:"count"`
}

func run(dial func(port uint16) (*gonet.TCPConn, error), words []string) (int, error) {
	if len(words) < 2 {
		return 0, errors.New("a command and a port")
	}
	number, _ := strconv.Atoi(words[1])
	port, size := uint16(number), 0
	if len(words) > 2 {
		size, _ = strconv.Atoi(words[2])
	}
	switch words[0] {
	case "put":
		conn, err := dial(port)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		data := random(size)
		if _, err := conn.Write(data); err != nil {
			return 0, err
		}
		if err := conn.CloseWrite(); err != nil {
			return 0, err
		}
		got, err := io.ReadAll(conn)
		if err == nil && string(got) != digest(data) {
			err = fmt.Errorf("the digest is %q", got)
		}
		return size, err
	case "get":
		conn, err := dial(port)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "%d\n", size)
		got, err := io.ReadAll(conn)
		if err != nil {
			return len(got), err
		}
		if len(got) != size+64 || digest(got[:size]) != string(got[size:]) {
			return len(got), errors.New("not what was sent")
		}
		return size, nil
	case "many":
		var group sync.WaitGroup
		var fine atomic.Int64
		for i := range size {
			group.Go(func() {
				conn, err := dial(port)
				if err != nil {
					return
				}
				defer conn.Close()
				line := fmt.Sprintf("line %d\n", i)
				io.WriteString(conn, line)
				conn.CloseWrite()
				if got, err := io.ReadAll(conn); err == nil && string(got) == line {
					fine.Add(1)
				}
			})
		}
		group.Wait()
		if int(fine.Load()) != size {
			return int(fine.Load()), errors.New("not all were answered")
		}
		return size, nil
	case "refused":
		conn, err := dial(port)
		if err == nil {
			conn.Close()
			return 0, errors.New("it was accepted")
		}
		if !strings.Contains(err.Error(), "refused") {
			return 0, err
		}
		return 0, nil
	}
	return 0, errors.New("no such command")
}

func main() {
	own := flag.String("address", "fd7a:115c:a1e0::b", "our address")
	peer := flag.String("peer", "fd7a:115c:a1e0::a", "whom commands dial")
	cubic := flag.Bool("cubic", false, "CUBIC instead of Reno")
	rack := flag.Bool("rack", false, "RACK, as releases before 1.8x have it")
	flag.Parse()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		log.Fatal(err)
	}
	socket.SetReadBuffer(7 << 20)
	socket.SetWriteBuffer(7 << 20)
	link := channel.New(512, mtu, "")
	address := tcpip.AddrFromSlice(netip.MustParseAddr(*own).AsSlice())
	s := newStack(address, link, *cubic, *rack)
	serve(s)
	carry(link, socket)
	fmt.Println(socket.LocalAddr().(*net.UDPAddr).Port)
	target := tcpip.AddrFromSlice(netip.MustParseAddr(*peer).AsSlice())
	dial := func(port uint16) (*gonet.TCPConn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return gonet.DialContextTCP(ctx, s, tcpip.FullAddress{Addr: target, Port: port}, ipv6.ProtocolNumber)
	}
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		began := time.Now()
		count, err := run(dial, strings.Fields(input.Text()))
		said := result{OK: err == nil, Seconds: time.Since(began).Seconds(), Count: count}
		if err != nil {
			said.Error = err.Error()
		}
		json.NewEncoder(os.Stdout).Encode(said)
	}
}
