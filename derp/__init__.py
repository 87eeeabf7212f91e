"""A DERP v2 relay, its client and its tools.  Stands alone: never imports `tailnet`.

Start reading at CONTRIBUTING.md (the house) and server/server.py (the service).
"""
