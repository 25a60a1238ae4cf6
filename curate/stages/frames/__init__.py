"""Stages that measure one image at a time, on a CPU."""
