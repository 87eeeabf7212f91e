"""The HTTP API, one file per resource: parse, authorise, call, answer (layer L3)."""
