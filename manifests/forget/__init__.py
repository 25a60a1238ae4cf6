"""Take samples out of a chain of manifests: rows, previews, pixels, encoded data, exports."""
