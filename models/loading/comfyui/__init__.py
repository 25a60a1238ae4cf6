"""Models from the single files of a ComfyUI installation."""
