//go:build newest

package main

import "tailscale.com/derp"

// lent is what the newest client wants of a packet instead of its bytes.
func lent(packet []byte) derp.LoanedBytes { return derp.LoanBytes(packet) }
