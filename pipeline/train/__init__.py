"""The training job: batches with Ray Data, workers with Ray Train, tracking and the run folder; its face is run.py."""
