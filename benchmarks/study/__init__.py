"""What only a correct implementation shows, on models that a CPU trains from scratch in minutes.

The objectives and adapters are those of `uhr.train`; the fields, data and models are small enough that the
truth is known. `make study` runs all of it and writes `benchmarks/results/study.md`.
"""
