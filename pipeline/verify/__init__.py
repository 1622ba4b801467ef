"""The verification job: check every row of an output against its masks, and repair it; its face is run.py."""
