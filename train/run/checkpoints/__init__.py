"""What a run trains, and how it is stored: state, optimiser, average, checkpoints."""
