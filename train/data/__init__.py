"""Encoded shards as batches: which rows form which batch, and how they are read."""
