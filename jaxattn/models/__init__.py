"""Classifiers, the attention modules in them, and the registry that finds them by name."""

from jaxattn.models.registry import build, find, names

__all__ = ["build", "find", "names"]
