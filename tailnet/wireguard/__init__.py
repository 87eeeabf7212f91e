"""WireGuard as a core without I/O: all sessions of one node key (layer L1).  Clause by clause: docs/wireguard.md."""
