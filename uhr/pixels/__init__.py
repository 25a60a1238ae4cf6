"""Bytes to pixels: headers, the only decode, colour conversion, and the only resize. All packages use it."""
