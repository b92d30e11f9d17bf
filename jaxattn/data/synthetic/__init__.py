"""The embedded data: synthetic dermoscopic images."""
