"""Rewrites for XLA's CPU backend alone; other backends never run them."""
