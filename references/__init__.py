"""The published systems in Keras and PyTorch: what tests and benchmarks compare ours with."""
