"""Alembic's steps from one schema to the next (layer L2).  database.py runs them when a store is opened.

A new step: copy the newest file of versions/, name the old one in `down_revision`, raise HEAD_REVISION in schema.py.
"""
