"""Generate an image from a request, write its record, and repeat it from the record."""
