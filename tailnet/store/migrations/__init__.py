"""Alembic's steps from one schema to the next (layer L2).  database.py runs them when a store is opened.

A new step: copy the newest file of versions/, name the old one in `down_revision`, raise HEAD_REVISION in schema.py.
Programs of the release before serve on it too, beside those that made it: a step adds, and what it adds they may leave
out.  READABLE_FROM in schema.py says which ones can.
"""
