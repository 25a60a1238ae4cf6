"""In place of the official module: where it keeps the masks that it has read."""

_BLOCK_MASK_CACHE = {}
