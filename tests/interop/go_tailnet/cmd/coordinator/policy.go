package main

import (
	"errors"
	"fmt"
	"net/netip"

	"tailnetpeers/uuid"
)

// policy says what one kind of caller may ask. The whole request is judged before any part of it is applied.
type policy interface{ authorize(*request) error }

var (
	tailscalePrefix = [6]byte{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}
	coderPrefix     = [6]byte{0xfd, 0x60, 0x62, 0x7a, 0xa4, 0x2b}
	legacyAddress   = netip.MustParseAddr("fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4")
)

type agentPolicy struct{ id uuid.ID }

func (a agentPolicy) authorize(req *request) error {
	if req.AddTunnel != nil {
		return errors.New("agents cannot open tunnels")
	}
	return checkAddresses(req, func(address netip.Addr) bool {
		return address == derive(tailscalePrefix, a.id) || address == derive(coderPrefix, a.id) || address == legacyAddress
	})
}

// clientPolicy asks mayDial about each tunnel's destination.
type clientPolicy struct {
	mayDial func(uuid.ID) error
}

func (c clientPolicy) authorize(req *request) error {
	if len(req.ReadyForHandshake) > 0 {
		return errors.New("clients cannot send ready_for_handshake")
	}
	if req.AddTunnel != nil {
		destination, err := uuid.FromBytes(req.AddTunnel.Id)
		if err != nil {
			return err
		}
		if err := c.mayDial(destination); err != nil {
			return err
		}
	}
	return checkAddresses(req, func(netip.Addr) bool { return true })
}

func checkAddresses(req *request, allowed func(netip.Addr) bool) error {
	for _, ready := range req.ReadyForHandshake {
		if _, err := uuid.FromBytes(ready.Id); err != nil {
			return err
		}
	}
	if req.RemoveTunnel != nil {
		if _, err := uuid.FromBytes(req.RemoveTunnel.Id); err != nil {
			return err
		}
	}
	if req.UpdateSelf == nil {
		return nil
	}
	if req.UpdateSelf.Node == nil {
		return errors.New("update_self without a node")
	}
	for _, text := range req.UpdateSelf.Node.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("node address: %w", err)
		}
		if prefix.Bits() != 128 {
			return fmt.Errorf("node address %s is not a /128", text)
		}
		if !allowed(prefix.Addr()) {
			return fmt.Errorf("node address %s is not yours", text)
		}
	}
	return nil
}

func derive(prefix [6]byte, id uuid.ID) netip.Addr {
	var raw [16]byte
	copy(raw[:6], prefix[:])
	copy(raw[6:], id[6:])
	return netip.AddrFrom16(raw)
}
