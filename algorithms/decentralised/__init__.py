"""Averaging with neighbours on a graph, in rounds or whenever a pair meets."""
