"""The segmentation job: decode, predict and write with Ray Data, exactly once; its face is run.py."""
