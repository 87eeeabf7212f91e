package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"storj.io/drpc"
	"tailscale.com/types/key"

	"tailnetpeers/proto/agentpb"
	pb "tailnetpeers/proto/tailnetpb"
)

// encoding is protobuf on the wire, as the generated stubs have it.
type encoding struct{}

func (encoding) Marshal(msg drpc.Message) ([]byte, error) { return proto.Marshal(msg.(proto.Message)) }
func (encoding) Unmarshal(b []byte, msg drpc.Message) error {
	return proto.Unmarshal(b, msg.(proto.Message))
}

// messages are the request and a maker of responses of an RPC. An RPC that the schema does not know takes and gives empty messages.
func messages(rpc string) (proto.Message, func() proto.Message) {
	empty := func() proto.Message { return &emptypb.Empty{} }
	service, method, ok := strings.Cut(strings.TrimPrefix(rpc, "/"), "/")
	if !ok {
		return empty(), empty
	}
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return empty(), empty
	}
	described := found.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	if described == nil {
		return empty(), empty
	}
	maker := func(name protoreflect.FullName) func() proto.Message {
		return func() proto.Message {
			kind, err := protoregistry.GlobalTypes.FindMessageByName(name)
			if err != nil {
				panic(err) // the generated files register every message they name
			}
			return kind.New().Interface()
		}
	}
	return maker(described.Input().FullName())(), maker(described.Output().FullName())
}

var protoJSON = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: false}

func toJSON(message proto.Message) json.RawMessage {
	text, err := protoJSON.Marshal(message)
	if err != nil {
		panic(err)
	}
	return text
}

// schema gives the two schema files that this program was generated from, as FileDescriptorProto.
func schema(context.Context, *peer, json.RawMessage) (fields, error) {
	out := fields{}
	for name, file := range map[string]protoreflect.FileDescriptor{
		"tailnet": pb.File_tailnet_proto_generated_tailnet_proto, "agent": agentpb.File_tailnet_proto_generated_agent_proto,
	} {
		raw, err := proto.Marshal(protodesc.ToFileDescriptorProto(file))
		if err != nil {
			return nil, err
		}
		out[name] = raw
	}
	return out, nil
}

type rpcArguments struct {
	RPC     string
	Stream  string
	Request json.RawMessage
}

// call is one unary RPC. Request and response are protojson with the schema's names.
func call(ctx context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[rpcArguments](raw)
	if err != nil {
		return nil, err
	}
	request, makeResponse := messages(arguments.RPC)
	if len(arguments.Request) > 0 {
		if err := protojson.Unmarshal(arguments.Request, request); err != nil {
			return nil, err
		}
	}
	client, err := p.session()
	if err != nil {
		return nil, err
	}
	response := makeResponse()
	if err := client.Invoke(ctx, arguments.RPC, encoding{}, request, response); err != nil {
		return nil, err
	}
	return fields{"response": toJSON(response)}, nil
}

// openStream starts a streaming RPC under a name. With a request it is a server stream: the request is sent and the sending side
// closed. Each message is an event "message", the end an event "end".
func openStream(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[rpcArguments](raw)
	if err != nil {
		return nil, err
	}
	request, makeResponse := messages(arguments.RPC)
	client, err := p.session()
	if err != nil {
		return nil, err
	}
	stream, err := newStream(client, arguments.RPC)
	if err != nil {
		return nil, err
	}
	if len(arguments.Request) > 0 {
		if err := protojson.Unmarshal(arguments.Request, request); err != nil {
			return nil, err
		}
		if err := stream.MsgSend(request, encoding{}); err != nil {
			return nil, err
		}
		if err := stream.CloseSend(); err != nil {
			return nil, err
		}
	}
	p.mu.Lock()
	p.streams[arguments.Stream] = stream
	p.mu.Unlock()
	go p.receive(stream, arguments.Stream, makeResponse)
	return nil, nil
}

func (p *peer) receive(stream drpc.Stream, name string, makeResponse func() proto.Message) {
	for {
		response := makeResponse()
		if err := stream.MsgRecv(response, encoding{}); err != nil {
			p.event("end", fields{"stream": name, "error": describe(err)})
			stream.Close()
			return
		}
		more := fields{"stream": name, "message": toJSON(response)}
		if coordinated, ok := response.(*pb.CoordinateResponse); ok {
			more["problems"] = problems(coordinated)
		}
		p.event("message", more)
	}
}

// problems is what the genuine key and address types think of received nodes; a genuine peer drops such nodes.
func problems(response *pb.CoordinateResponse) []string {
	found := []string{}
	complain := func(what string, err error) {
		if err != nil {
			found = append(found, fmt.Sprintf("%s: %v", what, err))
		}
	}
	for _, update := range response.PeerUpdates {
		if len(update.Id) != 16 {
			found = append(found, fmt.Sprintf("id of %d bytes", len(update.Id)))
		}
		if update.Node == nil {
			continue
		}
		var node key.NodePublic
		complain("key", node.UnmarshalBinary(update.Node.Key))
		var disco key.DiscoPublic
		complain("disco", disco.UnmarshalText([]byte(update.Node.Disco)))
		complain("as_of", update.Node.AsOf.CheckValid())
		for _, text := range append(update.Node.Addresses, update.Node.AllowedIps...) {
			_, err := netip.ParsePrefix(text)
			complain("address", err)
		}
	}
	return found
}

func (p *peer) stream(name string) (*openedStream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stream := p.streams[name]
	if stream == nil {
		return nil, fmt.Errorf("no stream %q", name)
	}
	return stream, nil
}

// sendMessage sends one CoordinateRequest, exactly as given.
func sendMessage(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[rpcArguments](raw)
	if err != nil {
		return nil, err
	}
	stream, err := p.stream(arguments.Stream)
	if err != nil {
		return nil, err
	}
	request := &pb.CoordinateRequest{}
	if err := protojson.Unmarshal(arguments.Request, request); err != nil {
		return nil, err
	}
	return sent(stream, stream.MsgSend(request, encoding{}))
}

// sent forgives an error on a stream that has ended: the server may answer a message by ending the stream before the library is
// back from sending it. The event "end" tells the driver.
func sent(stream drpc.Stream, err error) (fields, error) {
	if err != nil && stream.Context().Err() != nil {
		return fields{"cut_short": err.Error()}, nil
	}
	return fields{}, err
}

func closeSend(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[rpcArguments](raw)
	if err != nil {
		return nil, err
	}
	stream, err := p.stream(arguments.Stream)
	if err != nil {
		return nil, err
	}
	return nil, stream.CloseSend()
}

// closeStream cancels the call's context: the yamux stream ends abruptly.
func closeStream(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[rpcArguments](raw)
	if err != nil {
		return nil, err
	}
	stream, err := p.stream(arguments.Stream)
	if err != nil {
		return nil, err
	}
	stream.cancel()
	return nil, nil
}

// ownNode is this peer's node as its network stack would describe it; extra protojson fields are laid over it.
func (p *peer) ownNode(extra json.RawMessage) (*pb.Node, error) {
	raw, err := p.node.Public().MarshalBinary()
	if err != nil {
		return nil, err
	}
	node := &pb.Node{
		Id: 1, AsOf: timestamppb.New(time.Now()), Key: raw, Disco: p.disco.Public().String(), PreferredDerp: 999,
		DerpLatency: map[string]float64{"999-v4": 0.001},
	}
	if len(extra) > 0 {
		overlay := &pb.Node{}
		if err := protojson.Unmarshal(extra, overlay); err != nil {
			return nil, err
		}
		proto.Merge(node, overlay)
	}
	return node, nil
}

// sendUpdate sends update_self with this peer's keys. Reply: the node as sent, to compare with what others receive.
func sendUpdate(_ context.Context, p *peer, raw json.RawMessage) (fields, error) {
	arguments, err := parse[struct {
		Stream string
		Node   json.RawMessage
	}](raw)
	if err != nil {
		return nil, err
	}
	stream, err := p.stream(arguments.Stream)
	if err != nil {
		return nil, err
	}
	node, err := p.ownNode(arguments.Node)
	if err != nil {
		return nil, err
	}
	request := &pb.CoordinateRequest{UpdateSelf: &pb.CoordinateRequest_UpdateSelf{Node: node}}
	reply, err := sent(stream, stream.MsgSend(request, encoding{}))
	if err == nil {
		reply["node"] = toJSON(node)
	}
	return reply, err
}
