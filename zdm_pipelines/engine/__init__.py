"""How: one mechanism per module."""
