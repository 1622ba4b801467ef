"""Loading, import, export and calibration of checkpoints."""
