"""Attention mechanisms, one file each; importing the package registers them."""

from jaxattn.models.attention import gate, patch, se, soft
from jaxattn.models.attention.registry import ATTENTION

__all__ = ["ATTENTION", "gate", "patch", "se", "soft"]
