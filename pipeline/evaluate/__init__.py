"""Evaluation job: predict an annotated split, count pixels, and report mIoU and other metrics. Entry point: run.py."""
