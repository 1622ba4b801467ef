"""Confusion matrix, boundary IoU and calibration error of NumPy arrays."""
