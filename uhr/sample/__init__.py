"""`uhr sample`: one image or a set of them, from the command line."""
