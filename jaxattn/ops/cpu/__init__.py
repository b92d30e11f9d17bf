"""What is only for XLA's CPU backend."""
