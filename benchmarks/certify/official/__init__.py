"""The official side, in a Python environment of its own: `python -m benchmarks.certify.official JOB`.

Nothing here imports uhr, which need not be installed there. A driver has two functions: `load(job)` returns
the official pipeline on the CPU, `generate(pipeline, job, callback)` makes one image by the official call.
"""
