"""The diffusers pipelines of samplers: thin shells around plan and engine, one per sampler and family."""
