"""Models as the pipeline sees them: load, import, export and calibrate checkpoints."""
