"""Compares results of one protocol: paired differences, a page, tables for papers."""
