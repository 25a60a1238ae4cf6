"""What was measured before: by other runs, and by this one before it was stopped or its rows were retried."""
