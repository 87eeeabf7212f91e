"""The tailnet coordinator, its DERP-map service and its HTTP API.  May import `derp`, never the reverse."""
