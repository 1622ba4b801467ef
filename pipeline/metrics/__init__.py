"""Confusion matrix, boundary IoU and calibration error, on NumPy arrays."""
