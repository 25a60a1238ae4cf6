"""Pure functions on tensors and sizes, which know no model."""
