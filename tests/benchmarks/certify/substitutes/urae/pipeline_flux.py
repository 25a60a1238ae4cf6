"""Substitute for URAE's pipeline: diffusers' own, which passes two arguments on to the transformer."""

import functools

import diffusers


class FluxPipeline(diffusers.FluxPipeline):
    def __call__(self, *arguments, ntk_factor=1.0, proportional_attention=False, **named):
        kind = type(self.transformer)
        plain = kind.forward
        kind.forward = functools.partialmethod(
            plain, ntk_factor=ntk_factor, proportional_attention=proportional_attention
        )
        try:
            return super().__call__(*arguments, **named)
        finally:
            kind.forward = plain
