"""What a model costs, counted from shapes alone: weights, operations, bytes at work, seconds on a device."""
