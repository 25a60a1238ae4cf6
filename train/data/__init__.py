"""Batches of encoded data: which rows form which batch, and how they are read."""
