//go:build newest

// Package release says what differs between releases.
package release

import "tailscale.com/tailcfg"

// RegionID is how the release that is built names regions.
type RegionID = tailcfg.DERPRegionID
