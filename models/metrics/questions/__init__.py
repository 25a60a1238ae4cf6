"""Metrics that ask a vision-language model questions about an image: DPG-Bench and GenEval 2.

`files` reads the questions of both benchmarks, `answering` has the models that answer them, and `dpg_bench`
and `geneval2` turn answers into scores.
"""
