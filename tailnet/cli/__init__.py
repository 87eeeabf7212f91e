"""The tailnet command (layer L4)."""
