"""Training step: losses, optimizer, gradient accumulation and EMA."""
