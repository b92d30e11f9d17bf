"""Readers of public data sets, each in its official layout."""
