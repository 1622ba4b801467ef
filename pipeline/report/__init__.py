"""HTML report of a segmentation output: one self-contained file that opens from a bucket or disk without network."""
