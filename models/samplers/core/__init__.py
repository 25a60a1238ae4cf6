"""What the samplers share: facts of a model, plans, the engine that runs them, diffusers pipelines."""
