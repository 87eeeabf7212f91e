"""Several coordinators as one: what replicas tell each other, and what follows from it (layer L1, no I/O)."""
