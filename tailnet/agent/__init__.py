"""A workspace agent: what runs in a workspace, and what its users reach there.  Layer L3."""
