"""`uhr demo`: the whole workflow on this machine, and the images that it makes for itself."""
