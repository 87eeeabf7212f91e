"""A node of the tailnet: WireGuard, TCP and paths joined to relays, UDP and a coordinator (layer L3)."""
