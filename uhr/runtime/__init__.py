"""Units of work: atomic parts, resume, and the runners that execute them here, in processes or on Ray."""
