"""Weights from other frameworks, and back."""
