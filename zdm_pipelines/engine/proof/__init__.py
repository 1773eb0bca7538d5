"""Proof: whether two shapes agree, and what need not be read again."""
