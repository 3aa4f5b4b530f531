"""Differentially private SGD: the gradient of every sample is bounded, and noise is added to their sum."""
