"""The specs of backbones: one file per family, which lists them in `SPECS` and loads nothing."""
