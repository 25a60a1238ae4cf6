"""One module per family of backbones: text tensors, position ids, guidance, and how it is called."""
