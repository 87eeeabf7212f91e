package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

const sshPort = 1

// ssh dials the agent's SSH as genuine clients do: without a proof, and whatever the host key is.
func (c *client) ssh() (*ssh.Client, error) {
	conn, err := c.node.Dial(sshPort)
	if err != nil {
		return nil, err
	}
	config := &ssh.ClientConfig{HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: callLimit}
	made, channels, requests, err := ssh.NewClientConn(conn, "agent", config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(made, channels, requests), nil
}

// session is one on a connection of its own, which the caller closes.
func (c *client) session() (*ssh.Client, *ssh.Session, error) {
	client, err := c.ssh()
	if err != nil {
		return nil, nil, err
	}
	session, err := client.NewSession()
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return client, session, nil
}

// ended adds the exit status to what a program said; err is what its session ended with.
func ended(said answer, err error) (answer, error) {
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		said.Status, err = exit.ExitStatus(), nil
	}
	return said, err
}

// execute runs a command with Text as its input; Status is its exit status.
func execute(c *client, o order) (answer, error) {
	client, session, err := c.session()
	if err != nil {
		return answer{}, err
	}
	defer client.Close()
	for name, value := range o.Env {
		if err := session.Setenv(name, value); err != nil {
			return answer{}, err
		}
	}
	var stdout, stderr bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = strings.NewReader(o.Text), &stdout, &stderr
	err = session.Run(o.Command)
	said := answer{Text: stdout.String(), Stderr: stderr.String()}
	return ended(said, err)
}

// shell opens one on a terminal, changes its size, and types Text.
func shell(c *client, o order) (answer, error) {
	client, session, err := c.session()
	if err != nil {
		return answer{}, err
	}
	defer client.Close()
	if err := session.RequestPty("xterm-256color", 24, 80, ssh.TerminalModes{ssh.ECHO: 1}); err != nil {
		return answer{}, err
	}
	input, err := session.StdinPipe()
	if err != nil {
		return answer{}, err
	}
	output, err := session.StdoutPipe()
	if err != nil {
		return answer{}, err
	}
	if err := session.Shell(); err != nil {
		return answer{}, err
	}
	if err := session.WindowChange(int(o.Height), int(o.Width)); err != nil {
		return answer{}, err
	}
	if _, err := io.WriteString(input, o.Text); err != nil {
		return answer{}, err
	}
	shown, err := io.ReadAll(output)
	said := answer{Text: string(shown)}
	if err != nil {
		return said, err
	}
	return ended(said, session.Wait())
}

// forwarded exchanges bytes with a port that the agent dials for us.
func forwarded(c *client, o order) (answer, error) {
	client, err := c.ssh()
	if err != nil {
		return answer{}, err
	}
	defer client.Close()
	conn, err := client.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(o.Port)))
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return answer{Size: o.Size}, exchange(conn, func() error { return halfClose(conn) }, o.Size)
}

// transfer writes a file of Size bytes, reads it back and compares.
func transfer(c *client, o order) (answer, error) {
	client, err := c.ssh()
	if err != nil {
		return answer{}, err
	}
	defer client.Close()
	files, err := sftp.NewClient(client)
	if err != nil {
		return answer{}, err
	}
	defer files.Close()
	data := make([]byte, o.Size)
	rand.Read(data)
	written, err := files.Create(o.Path)
	if err != nil {
		return answer{}, err
	}
	if _, err := written.ReadFrom(bytes.NewReader(data)); err != nil {
		return answer{}, err
	}
	if err := written.Close(); err != nil {
		return answer{}, err
	}
	read, err := files.Open(o.Path)
	if err != nil {
		return answer{}, err
	}
	defer read.Close()
	got, err := io.ReadAll(read)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("%d bytes were read of %d, and not what was written", len(got), o.Size)
	}
	return answer{Size: len(got)}, err
}
