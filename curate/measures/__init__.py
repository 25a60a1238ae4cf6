"""Measurements on decoded pixels: pure functions on arrays, without rows or stages."""
