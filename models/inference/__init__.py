"""Prediction: sliding windows, batches, and masks with their statistics."""
