//go:build newest

package main

import "tailscale.com/tailcfg"

type regionID = tailcfg.DERPRegionID
