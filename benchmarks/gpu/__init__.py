"""What windows and samplers take on one large GPU, at FLUX.1-dev's shape with random weights: see
`__main__.py`."""
