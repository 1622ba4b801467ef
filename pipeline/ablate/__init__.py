"""Ablation job: train and evaluate a grid of variants. Its entry point is run.py."""
