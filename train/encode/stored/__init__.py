"""The files of encoded data: how tensors are written, described, found and read."""
