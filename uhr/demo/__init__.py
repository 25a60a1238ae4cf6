"""`uhr demo`: the whole workflow on this machine, with images that it makes."""
