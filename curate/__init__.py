"""Images in, manifest out: stages annotate every image, rules decide, nothing disappears."""
