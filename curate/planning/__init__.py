"""From a configuration to a checked plan: which stages run, in which order, and what they add."""
