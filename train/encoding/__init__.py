"""The parts of `encode`: pixel buckets, keys, the work on one unit, and the commit."""
