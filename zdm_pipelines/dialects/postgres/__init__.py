"""Postgres 14 and later."""
