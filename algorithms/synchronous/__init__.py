"""Synchronous SGD: all workers hold one and the same model."""
