"""Training by signs: one bit for each coordinate, both ways."""
