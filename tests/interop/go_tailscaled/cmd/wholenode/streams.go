package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

const (
	echo, sink, count, source, plain = 7, 9, 10, 19, 20
	digestLength                     = 2 * sha256.Size
)

var block = make([]byte, 1<<18)

// services answer by port; a port without one refuses.
var services = map[uint16]func(net.Conn){
	echo: closing(func(conn net.Conn) { io.Copy(conn, conn) }),
	sink: closing(func(conn net.Conn) {
		hash := sha256.New()
		io.CopyBuffer(hash, conn, make([]byte, len(block)))
		io.WriteString(conn, hex.EncodeToString(hash.Sum(nil)))
	}),
	count: closing(func(conn net.Conn) {
		size, _ := discard(conn)
		io.WriteString(conn, strconv.FormatInt(size, 10))
	}),
	source: closing(func(conn net.Conn) {
		data := random(asked(conn))
		conn.Write(data)
		io.WriteString(conn, digest(data))
	}),
	plain: closing(func(conn net.Conn) { write(conn, asked(conn)) }),
}

func closing(serve func(net.Conn)) func(net.Conn) {
	return func(conn net.Conn) {
		defer conn.Close()
		serve(conn)
	}
}

func asked(conn net.Conn) int {
	line, _ := bufio.NewReader(conn).ReadString('\n')
	size, _ := strconv.Atoi(strings.TrimSpace(line))
	return size
}

func discard(conn io.Reader) (size int64, err error) {
	buffer := make([]byte, len(block))
	for {
		n, err := conn.Read(buffer)
		size += int64(n)
		if err == io.EOF {
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

func write(conn io.Writer, size int) error {
	for size > 0 {
		n, err := conn.Write(block[:min(size, len(block))])
		if err != nil {
			return err
		}
		size -= n
	}
	return nil
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

func run(dial func(uint16) (net.Conn, error), order string, port uint16, size int) error {
	conn, err := dial(port)
	if order == "refused" {
		if err == nil {
			conn.Close()
			return errors.New("it was accepted")
		}
		if strings.Contains(err.Error(), "refused") {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	switch order {
	case "put":
		return put(conn, port, size)
	case "get":
		return get(conn, port, size)
	case "echo":
		return echoed(conn, size)
	}
	return errors.New("no such order")
}

func put(conn net.Conn, port uint16, size int) error {
	wanted := strconv.Itoa(size)
	var err error
	if port == count {
		err = write(conn, size)
	} else {
		data := random(size)
		wanted = digest(data)
		_, err = conn.Write(data)
	}
	if err != nil {
		return err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != wanted {
		return fmt.Errorf("%q came, not %q", got, wanted)
	}
	return err
}

func get(conn net.Conn, port uint16, size int) error {
	fmt.Fprintf(conn, "%d\n", size)
	if port == plain {
		got, err := discard(conn)
		if err == nil && got != int64(size) {
			return fmt.Errorf("%d bytes came", got)
		}
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && (len(got) != size+digestLength || digest(got[:size]) != string(got[size:])) {
		return fmt.Errorf("%d bytes came, and not what was sent", len(got))
	}
	return err
}

func echoed(conn net.Conn, size int) error {
	data := random(size)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		if err == nil {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		wrote <- err
	}()
	got, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if err := <-wrote; err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("%d bytes came back, and not what was sent", len(got))
	}
	return nil
}
