"""What the prompts and references of an evaluation share with the data that a model was trained on."""
