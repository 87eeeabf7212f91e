package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// stormResult is what became of clients that lost their connections together and came back together.
type stormResult struct {
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds"` // from the end of the old connections to the last login
	Failed  int64   `json:"failed"`  // dials that did not become logins; each is made once
}

// lines are those of standard input; whoever runs us says by one each when something begins and ends.
var lines = bufio.NewReader(os.Stdin)

func awaitLine() error {
	_, err := lines.ReadString('\n')
	return err
}

// storm connects clients, waits for a line, ends their connections and has all of them dial at once, as happens when
// a router on the way restarts.  Then it waits for another line, so that nobody leaves in the measured window.
func storm(t *target, o options) (*stormResult, error) {
	who, err := newIdentities(o.idle, t.serverKey)
	if err != nil {
		return nil, err
	}
	links, err := dialAll(t, who, o.parallel, nobody)
	if err != nil {
		return nil, err
	}
	fmt.Println("connected")
	if err := awaitLine(); err != nil {
		return nil, errors.New("standard input ended before the storm")
	}
	begin := time.Now()
	for i, l := range links {
		// Without the goodbye of TLS: who lost its way says none.
		end(l.nc)
		links[i] = nil
	}
	var failed atomic.Int64
	var group sync.WaitGroup
	for i := range who {
		group.Go(func() {
			l, err := dial(t, who[i], -1, -1)
			if err != nil {
				failed.Add(1)
				return
			}
			l.release()
			links[i] = l
		})
	}
	group.Wait()
	r := &stormResult{Count: o.idle, Seconds: time.Since(begin).Seconds(), Failed: failed.Load()}
	fmt.Println("back")
	awaitLine()
	return r, nil
}

func end(nc net.Conn) {
	if secured, is := nc.(interface{ NetConn() net.Conn }); is {
		nc = secured.NetConn()
	}
	nc.Close()
}
