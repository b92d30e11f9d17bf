"""Attention operations: the plain definition of each, and the fast form that equals it."""
