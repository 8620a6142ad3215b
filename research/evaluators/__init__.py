"""Evaluators beside HeldOut: what frozen vectors know, how sure scores and probabilities are."""
