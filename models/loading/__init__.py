"""Weights from folders, the hub and single files; quantised or offloaded; their hashes."""
