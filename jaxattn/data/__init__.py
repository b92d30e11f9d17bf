"""Data sets, splits, plans, loaders and augmentation."""
