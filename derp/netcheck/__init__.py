"""What to measure of a DERP map, and what the measurements mean (layer L1)."""
