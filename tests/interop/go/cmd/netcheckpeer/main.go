// Command netcheckpeer says what the genuine netcheck library makes of a DERP map.
//
//	netcheckpeer report  < {"steps": [{"map": DERPMap, "heard": {"901": 0.5}}]}  netchecks from this machine
//	netcheckpeer history < {"map": DERPMap, "reports": [{"at": seconds, "seconds": {"901": 0.01}, "map": DERPMap}]}
//	netcheckpeer portal  < {"map": DERPMap, "home": 901}                     is there a captive portal
//
// report prints the report of each step in our own words, where all steps are of one client and `heard` is how many
// seconds before the step the relay of a region last gave a frame; history prints the home after each of the made-up
// reports, which may have a map of its own; portal prints true or false.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"strconv"
	"time"

	"tailscale.com/net/captivedetection"
	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"

	"interop/release"
)

type question struct {
	Map   *tailcfg.DERPMap `json:"map"`
	Home  int              `json:"home"`
	Steps []struct {
		Map   *tailcfg.DERPMap   `json:"map"`
		Heard map[string]float64 `json:"heard"`
	} `json:"steps"`
	Reports []struct {
		At      float64            `json:"at"`
		Seconds map[string]float64 `json:"seconds"`
		Map     *tailcfg.DERPMap   `json:"map"`
	} `json:"reports"`
}

type answer struct {
	UDP           bool            `json:"udp"`
	IPv4          bool            `json:"ipv4"`
	IPv6          bool            `json:"ipv6"`
	IPv4CanSend   bool            `json:"ipv4_can_send"`
	IPv6CanSend   bool            `json:"ipv6_can_send"`
	OSHasIPv6     bool            `json:"os_has_ipv6"`
	ICMPv4        bool            `json:"icmp_ipv4"`
	MappingVaries *bool           `json:"mapping_varies"`
	GlobalIPv4    string          `json:"global_ipv4"`
	GlobalIPv6    string          `json:"global_ipv6"`
	Preferred     int             `json:"preferred"`
	Region        map[int]float64 `json:"region_seconds"`
	RegionIPv4    map[int]float64 `json:"region_ipv4_seconds"`
	RegionIPv6    map[int]float64 `json:"region_ipv6_seconds"`
}

func main() {
	log.SetOutput(os.Stderr)
	if len(os.Args) != 2 {
		log.Fatal("usage: netcheckpeer report|history|portal")
	}
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal(err)
	}
	var said any
	switch os.Args[1] {
	case "report":
		said = reports(asked)
	case "history":
		said = history(asked)
	case "portal":
		detector := captivedetection.NewDetector(log.Printf)
		said = detector.Detect(context.Background(), netmon.NewStatic(), asked.Map, release.RegionID(asked.Home))
	default:
		log.Fatalf("no such question: %s", os.Args[1])
	}
	if err := json.NewEncoder(os.Stdout).Encode(said); err != nil {
		log.Fatal(err)
	}
}

func reports(asked question) []answer {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Verbose: wait for all regions, as ours does when it is asked for a table.
	client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: log.Printf, Verbose: true}
	if err := client.Standalone(ctx, ":0"); err != nil {
		log.Fatal(err)
	}
	answers := []answer{}
	for _, step := range asked.Steps {
		began := time.Now()
		found, err := client.GetReport(ctx, step.Map, &netcheck.GetReportOpts{
			GetLastDERPActivity: func(region release.RegionID) time.Time {
				ago, ok := step.Heard[strconv.Itoa(int(region))]
				if !ok {
					return time.Time{}
				}
				return began.Add(-time.Duration(ago * float64(time.Second)))
			},
		})
		if err != nil {
			log.Fatal(err)
		}
		answers = append(answers, inOurWords(found))
	}
	return answers
}

func inOurWords(found *netcheck.Report) answer {
	said := answer{
		UDP:         found.UDP,
		IPv4:        found.IPv4,
		IPv6:        found.IPv6,
		IPv4CanSend: found.IPv4CanSend,
		IPv6CanSend: found.IPv6CanSend,
		OSHasIPv6:   found.OSHasIPv6,
		ICMPv4:      found.ICMPv4,
		Preferred:   int(found.PreferredDERP),
		Region:      seconds(found.RegionLatency),
		RegionIPv4:  seconds(found.RegionV4Latency),
		RegionIPv6:  seconds(found.RegionV6Latency),
	}
	if found.GlobalV4.IsValid() {
		said.GlobalIPv4 = found.GlobalV4.String()
	}
	if found.GlobalV6.IsValid() {
		said.GlobalIPv6 = found.GlobalV6.String()
	}
	if varies, ok := found.MappingVariesByDestIP.Get(); ok {
		said.MappingVaries = &varies
	}
	return said
}

func history(asked question) []int {
	// The library lets only tests put reports into its history, and this flag is how it tells one.
	flag.Bool("test.v", false, "")
	client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: func(string, ...any) {}}
	start := time.Unix(1_000_000, 0)
	homes := []int{}
	for _, one := range asked.Reports {
		made := &netcheck.Report{RegionLatency: map[release.RegionID]time.Duration{}}
		for id, latency := range one.Seconds {
			region, err := strconv.Atoi(id)
			if err != nil {
				log.Fatal(err)
			}
			made.RegionLatency[release.RegionID(region)] = time.Duration(latency * float64(time.Second))
		}
		seen := one.Map
		if seen == nil {
			seen = asked.Map
		}
		client.AddReportHistoryForTest(seen, made, start.Add(time.Duration(one.At*float64(time.Second))))
		homes = append(homes, int(made.PreferredDERP))
	}
	return homes
}

func seconds(of map[release.RegionID]time.Duration) map[int]float64 {
	out := make(map[int]float64, len(of))
	for region, latency := range of {
		out[int(region)] = latency.Seconds()
	}
	return out
}
