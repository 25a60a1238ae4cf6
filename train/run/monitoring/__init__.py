"""What a run measures and shows: its log, the loss of held-out images, generated images."""
