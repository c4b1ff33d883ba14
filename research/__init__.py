"""Reigen: distributed learning in JAX. One device mesh, and every way for machines to learn
together.

The rooms, each importing only those above it: parallel, models, data, exchange, learning, training.
A run is described by `research.experiment.Experiment`, and carried out by `research.runs`.
"""
