"""The ablation job: train and evaluate a grid of variants; its face is run.py."""
