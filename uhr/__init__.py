"""Curated 4K image sets and ultra-high-resolution text-to-image models.

`uhr.curate`, `uhr.manifests`, `uhr.models` and `uhr.train` are at the top level of the repository and
are linked in here, so that an installed `uhr` neither shadows nor is shadowed by
anybody's `models/` or `train.py`.
"""

__version__ = "0.1.0"
