"""Training job: Ray Data batches, Ray Train workers, tracking and the run folder. Its entry point is run.py."""
