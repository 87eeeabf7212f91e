"""yamux and dRPC as sans-IO cores (layer L1)."""
