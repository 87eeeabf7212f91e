//go:build !newest

// Package release says what differs between releases.
package release

// RegionID is how the release that is built names regions.
type RegionID = int
