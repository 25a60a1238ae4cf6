"""Locks: of a folder by the processes of one machine, of a prefix in an object store by those of any."""
