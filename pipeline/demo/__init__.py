"""Demo job: start an S3 server on this machine and run the main jobs against it. Its entry point is run.py."""
