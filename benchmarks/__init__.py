"""One module per family of claims; each prints a ratio against a peer or a bound measured in the same run."""
