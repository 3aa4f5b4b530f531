"""Parameter servers, and workers that share one memory."""
