"""Prediction by batches and sliding windows, and masks with their statistics."""
