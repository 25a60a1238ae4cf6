"""The files of adapters: recognised, read and written exactly, whichever program made them."""
