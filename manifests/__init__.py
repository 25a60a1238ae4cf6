"""The contract between curation and training: immutable, self-describing sets of samples in plain Parquet."""
