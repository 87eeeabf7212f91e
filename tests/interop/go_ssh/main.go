// An SSH client of golang.org/x/crypto/ssh, which clients of agents are made with: asks a server for everything
// that such clients ask for, and prints a line of JSON for each, with what came of it.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

type result struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

var out = json.NewEncoder(os.Stdout)

func say(name, text string) {
	if err := out.Encode(result{name, text}); err != nil {
		panic(err)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// How a session ended: its status, its signal, or whatever went wrong.
func ended(err error) string {
	switch err := err.(type) {
	case nil:
		return "0"
	case *ssh.ExitError:
		if err.Signal() != "" {
			return "signal " + err.Signal()
		}
		return fmt.Sprint(err.ExitStatus())
	default:
		return err.Error()
	}
}

func run(client *ssh.Client, command string, stdin []byte) string {
	session := must(client.NewSession())
	defer session.Close()
	var stdout, stderr bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := session.Run(command)
	return fmt.Sprintf("%s|%s|%s", stdout.String(), stderr.String(), ended(err))
}

func echo(conn net.Conn) {
	defer conn.Close()
	data := must(io.ReadAll(conn))
	must(conn.Write([]byte(strings.ToUpper(string(data)))))
}

type halfCloser interface{ CloseWrite() error }

func ask(conn net.Conn) string {
	defer conn.Close()
	must(conn.Write([]byte("hello")))
	if err := conn.(halfCloser).CloseWrite(); err != nil {
		return err.Error()
	}
	return string(must(io.ReadAll(conn)))
}

func serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go echo(conn)
	}
}

func terminal(client *ssh.Client) {
	session := must(client.NewSession())
	defer session.Close()
	modes := ssh.TerminalModes{ssh.ECHO: 0, ssh.ONLCR: 0}
	if err := session.RequestPty("vt100", 37, 101, modes); err != nil {
		panic(err)
	}
	stdin, stdout := must(session.StdinPipe()), must(session.StdoutPipe())
	command := `trap 'stty size; exit 9' WINCH; echo $TERM; stty size; stty | tr ' ' '\n' | grep -x -e -echo -e -onlcr; ` +
		`read line; echo "got $line"; while :; do sleep 0.01; done`
	if err := session.Start(command); err != nil {
		panic(err)
	}
	lines := func(count int) string {
		var text []byte
		one := make([]byte, 1)
		for bytes.Count(text, []byte("\n")) < count {
			must(io.ReadFull(stdout, one))
			text = append(text, one...)
		}
		return string(text)
	}
	begin := lines(4)
	must(stdin.Write([]byte("typed\n")))
	typed := lines(1)
	if err := session.WindowChange(50, 120); err != nil {
		panic(err)
	}
	say("terminal", begin+typed+lines(1)+ended(session.Wait()))
}

func signals(client *ssh.Client) {
	session := must(client.NewSession())
	defer session.Close()
	stdout := must(session.StdoutPipe())
	if err := session.Start(`trap 'echo got usr1; exit 3' USR1; echo ready; while :; do sleep 0.01; done`); err != nil {
		panic(err)
	}
	must(io.ReadFull(stdout, make([]byte, len("ready\n"))))
	if err := session.Signal(ssh.SIGUSR1); err != nil {
		panic(err)
	}
	text := must(io.ReadAll(stdout))
	say("signal", string(text)+ended(session.Wait()))
}

func forwards(client *ssh.Client, dir string) {
	local := must(net.Listen("tcp", "127.0.0.1:0"))
	go serve(local)
	say("dial tcp", ask(must(client.Dial("tcp", local.Addr().String()))))
	path := filepath.Join(dir, "dialled")
	unix := must(net.Listen("unix", path))
	go serve(unix)
	say("dial unix", ask(must(client.Dial("unix", path))))
	_, err := client.Dial("tcp", "127.0.0.1:1")
	say("dial nobody", err.Error())

	there := must(client.Listen("tcp", "127.0.0.1:0"))
	go serve(there)
	say("listen tcp", ask(must(net.Dial("tcp", there.Addr().String()))))
	there.Close()
	_, err = net.Dial("tcp", there.Addr().String())
	say("listen no more", fmt.Sprint(err != nil))
	path = filepath.Join(dir, "listened")
	thereUnix := must(client.ListenUnix(path))
	go serve(thereUnix)
	say("listen unix", ask(must(net.Dial("unix", path))))
	thereUnix.Close()
}

func main() {
	address, dir := flag.String("address", "", "of the server"), flag.String("dir", "", "for sockets")
	flag.Parse()
	config := &ssh.ClientConfig{User: "user", HostKeyCallback: ssh.InsecureIgnoreHostKey()}
	client := must(ssh.Dial("tcp", *address, config))
	defer client.Close()

	say("version", string(client.ServerVersion()))
	say("command", run(client, "cat; echo err >&2; exit 7", []byte("given ")))
	say("ended by signal", run(client, "kill -KILL $$", nil))

	session := must(client.NewSession())
	say("environment", fmt.Sprint(session.Setenv("FROM_GO", "yes")))
	text, err := session.Output("echo $FROM_GO")
	say("environment", string(text)+ended(err))

	session = must(client.NewSession())
	granted := must(session.SendRequest("auth-agent-req@openssh.com", true, nil))
	say("agent forwarding", fmt.Sprint(granted))
	granted = must(session.SendRequest("no-such@example.org", true, nil))
	say("unknown request", fmt.Sprint(granted))
	say("unknown subsystem", fmt.Sprint(session.RequestSubsystem("none")))
	session.Close()

	granted, _, err = client.SendRequest("keepalive@openssh.com", true, nil)
	say("keepalive", fmt.Sprint(granted, err))
	granted, _, err = client.SendRequest("no-such@example.org", true, nil)
	say("unknown global request", fmt.Sprint(granted, err))
	_, _, err = client.OpenChannel("no-such@example.org", nil)
	say("unknown channel", err.Error())

	terminal(client)
	signals(client)
	forwards(client, *dir)

	var all sync.WaitGroup
	texts := make([]string, 20)
	for at := range texts {
		all.Go(func() { texts[at] = run(client, fmt.Sprintf("echo %d; exit %d", at, at), nil) })
	}
	all.Wait()
	say("at once", strings.Join(texts, " "))
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	say("large", fmt.Sprint(run(client, "cat", large) == string(large)+"||0"))
}
