"""The prepared format: TFDS records in ArrayRecord files, written and read without TensorFlow."""
