"""Byte streams under the tailnet RPC (layer L2)."""
