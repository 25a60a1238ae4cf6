"""Published weights through the official code and through ours, from the same noise: deviation, time, memory.

It needs the weights, and a GPU for them. Proven on tiny weights: `tests/benchmarks/certify/`.
"""
