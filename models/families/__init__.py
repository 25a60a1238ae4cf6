"""One module per family of backbones: text tensors, position ids, guidance, and the forward call."""
