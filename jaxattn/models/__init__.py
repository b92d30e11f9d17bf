"""Classifiers, the attention modules in them, and the registry that finds them by name."""

from jaxattn.models.registry import create, find, names

__all__ = ["create", "find", "names"]
