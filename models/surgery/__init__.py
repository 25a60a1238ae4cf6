"""Named, reversible edits of a loaded model, and their record."""
