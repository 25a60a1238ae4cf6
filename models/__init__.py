"""The model zoo: backbones, adapters and samplers on diffusers' own classes."""
