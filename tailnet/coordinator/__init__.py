"""The coordinator's brain: peers, tunnels, policies (layer L1, no I/O)."""
