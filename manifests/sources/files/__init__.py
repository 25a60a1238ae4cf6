"""The files that sources read, on this machine or in a bucket: where they are, and what is in archives."""
