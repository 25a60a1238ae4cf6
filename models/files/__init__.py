"""Weight files: what one contains, by names and shapes; the only writer; the file of an adapter."""
