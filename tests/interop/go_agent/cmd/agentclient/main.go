// Command agentclient is a genuine client of one agent: it joins the tailnet of a coordinator and uses all that an agent
// serves.  Node, RPC channel, websocket, SSH, sftp and speed test are the genuine packages.
//
// stdin has one JSON object per line, an order with "op" and its arguments; each is answered with one on stdout, which has
// "ok", or "error" and what went wrong.  The first line on stdout says that the agent is reached.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"log"
	"os"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/logger"
)

// order is any of them; each reads what it needs.
type order struct {
	Op       string
	Kind     string
	Port     uint16
	Size     int
	Method   string
	Path     string
	Count    int
	Upload   bool
	Seconds  int
	Name     string
	Text     string
	Terminal map[string]any
	Height   uint16
	Width    uint16
	Command  string
	Env      map[string]string
}

type answer struct {
	OK       bool     `json:"ok"`
	Error    string   `json:"error,omitempty"`
	Seconds  float64  `json:"seconds"`
	Text     string   `json:"text,omitempty"`
	Stderr   string   `json:"stderr,omitempty"`
	Status   int      `json:"status,omitempty"`
	Size     int      `json:"size,omitempty"`
	Messages []string `json:"messages,omitempty"`
}

var operations = map[string]func(*client, order) (answer, error){
	"ping": func(c *client, o order) (answer, error) {
		way, err := c.node.Ping(tailcfg.PingType(o.Kind), 2*time.Second)
		return answer{Text: way}, err
	},
	"echo":      echo,
	"refused":   refused,
	"http":      request,
	"watch":     watch,
	"speedtest": measure,
	"pty_open":  openTerminal,
	"pty_type":  typeKeys,
	"pty_wait":  waitShown,
	"pty_close": closeTerminal,
	"ssh_exec":  execute,
	"ssh_shell": shell,
	"ssh_tcp":   forwarded,
	"sftp":      transfer,
}

func main() {
	url := flag.String("url", "", "the coordinator's")
	token := flag.String("token", "", "a user's")
	agent := flag.String("agent", "", "the id of the agent")
	flag.Parse()
	logf := logger.Discard
	if os.Getenv("AGENTCLIENT_LOG") != "" {
		logf = log.Printf
	}
	output := json.NewEncoder(os.Stdout)
	c, err := join(logf, *url, *token, *agent)
	if err != nil {
		output.Encode(answer{Error: err.Error()})
		os.Exit(1)
	}
	output.Encode(answer{OK: true})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		began := time.Now()
		var o order
		said, err := answer{}, json.Unmarshal(lines.Bytes(), &o)
		if err == nil {
			if obey := operations[o.Op]; obey != nil {
				said, err = obey(c, o)
			} else {
				log.Fatalf("no such op: %q", o.Op)
			}
		}
		said.OK, said.Seconds = err == nil, time.Since(began).Seconds()
		if err != nil {
			said.Error = err.Error()
		}
		output.Encode(said)
	}
}
