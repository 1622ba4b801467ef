"""The evaluation job: predict a labeled split, count, and report mIoU and its like; its face is run.py."""
