"""One small file per family of backbones; each lists its specs in `SPECS` and loads nothing."""
