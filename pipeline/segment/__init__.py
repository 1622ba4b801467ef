"""Segmentation job: decodes, predicts and writes images with Ray Data, exactly once. The entry point is run.py."""
