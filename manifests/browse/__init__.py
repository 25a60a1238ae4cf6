"""The browser of a manifest: a page on this machine to look at rows, filter, sort, review and slice them."""
