"""How coordinators of one cluster find each other, and what carries their frames: docs/replicas.md."""
