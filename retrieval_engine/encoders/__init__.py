"""Features out: models that turn pictures and captions into arrays."""
