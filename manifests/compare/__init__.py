"""Compare manifests: what changed between two, the history of one sample, union and difference."""
