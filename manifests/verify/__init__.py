"""Checks of a manifest against its own record: hashes, counts, schema, values."""
