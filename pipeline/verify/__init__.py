"""Verification job: check every row of an output against its masks, and repair the output. Entry point: run.py."""
