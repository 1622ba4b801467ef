"""The demo job: an S3 server on this machine, and every other job against it; its face is run.py."""
