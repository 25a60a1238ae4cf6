"""From a request to an image with its record: options, setup, session, record, repeat."""
