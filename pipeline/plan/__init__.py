"""The planning job: forecast the time, cost and size of a segmentation; its face is run.py."""
