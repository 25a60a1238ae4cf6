"""Weight files: read their names and shapes, recognise their kind, find an adapter's file, and write them."""
