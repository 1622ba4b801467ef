"""Planning job: forecasts the time, cost and output size of a segmentation. The entry point is run.py."""
