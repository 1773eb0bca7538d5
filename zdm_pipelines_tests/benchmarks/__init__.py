"""Benchmarks: what the documentation claims of time, measured and shown; nothing here is asserted."""
