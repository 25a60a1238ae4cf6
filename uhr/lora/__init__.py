"""`uhr train lora`: from a folder of images to a LoRA in one command, which joins curation and training."""
