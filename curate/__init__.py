"""Images in, manifest out: stages annotate every picture, rules decide, nothing disappears."""
