"""Rewrites for TPUs alone; other devices never run them."""
