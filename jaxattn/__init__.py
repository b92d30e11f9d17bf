"""Attention-based skin-lesion classifiers in JAX: train, convert, evaluate, look into."""
