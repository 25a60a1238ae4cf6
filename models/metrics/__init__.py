"""Metrics of generated images: what a value is called, what it needs, and from which weights it comes.

`registry.metric(name, **options)` makes a metric. An `ImageMetric` scores each image; a `SetMetric`
compares the features of two sets, or describes those of one (`base`).
"""
