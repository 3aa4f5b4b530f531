"""Variance reduction on finite sums: gradients corrected by those at a snapshot."""
