"""Schema: changes under short locks, and the triggers that keep old and new shape in sync."""
