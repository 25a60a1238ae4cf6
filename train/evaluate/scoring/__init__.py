"""How images are scored: the request, groups of metrics that are loaded together, and the work on images."""
