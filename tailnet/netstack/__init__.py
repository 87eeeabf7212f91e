"""IPv6, ICMPv6, TSMP, UDP and TCP of a node, without I/O.  Layer L1; start with stack.py.  docs/tcp.md has the RFCs."""
