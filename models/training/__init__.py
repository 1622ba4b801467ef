"""One training step: losses, optimizer, gradient accumulation and EMA."""
