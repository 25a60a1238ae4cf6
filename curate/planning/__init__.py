"""Turn a configuration into a checked plan: which stages run, in which order, and the columns they add."""
