"""Clients of relays: connect, reconnect, netcheck, probe (layer L3)."""
