"""The relay as a service: joins the brain to the transports (layer L3)."""
