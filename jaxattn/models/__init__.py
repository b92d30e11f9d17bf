"""Classifiers, backbones and attention, and the registries that find them by name."""
