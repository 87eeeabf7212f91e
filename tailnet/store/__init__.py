"""Durable state: users, workspaces, agents, tokens, keys (layer L2)."""
