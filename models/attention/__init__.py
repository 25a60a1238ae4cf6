"""Attention over ultra-high-resolution grids: hierarchical local windows with guide tokens (UltraGen), and
the dense methods' proportional scale and text duplication. `call.py` describes how a sampler or a trainer
uses them.
"""
