"""Verify a manifest: hashes, counts, schema, values."""
