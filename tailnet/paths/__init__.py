"""Which way packets take to a peer: disco messages and what follows from them (layer L1).  docs/disco.md."""
