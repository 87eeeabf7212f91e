"""The API for control planes, below /api/v2/admin: an app of its own, with tokens of its own."""
