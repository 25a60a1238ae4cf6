"""One small file per family of backbones: what its transformer wants to be told, and how."""
