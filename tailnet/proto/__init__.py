"""Messages of the tailnet RPC: our own text of the schema and its generated classes (layer L1)."""
