"""Named, reversible changes of a loaded model, and the record of them."""
