"""Sockets, TLS, websockets, UDP and the reactor (layer L2): no protocol decision is taken here."""
