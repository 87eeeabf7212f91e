"""The wire of DERP v2 as sans-IO cores (layer L1)."""
