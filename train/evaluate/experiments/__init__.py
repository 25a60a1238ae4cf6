"""Experiments: arms, trained or not, evaluated under one protocol, with intervals over training seeds."""
