"""The relay's brain: registry, routing, queues, limits, mesh (layer L1, no I/O)."""
