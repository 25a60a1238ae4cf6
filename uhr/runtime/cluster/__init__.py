"""Ray clusters: whether one answers at an address, and whether its machines can do the work."""
