"""The coordinator as a service (layer L3)."""
