"""Metrics of artifacts that generators of large images leave: grids and seams, speckles, repeated content.

None needs weights or a reference. Each gives values per image, and a heat map of where they come from
(`heat.Located`).
"""
