"""Local steps between averages of the models."""
