"""Bytes to pixels, below all packages: headers, the only decode, colour conversion, and the only resize."""
