"""Means of functions of a mean of functions, whose gradient has no simple unbiased estimate."""
