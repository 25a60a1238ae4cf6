"""What is encoded in units: the items, and the work on an image or a caption."""
