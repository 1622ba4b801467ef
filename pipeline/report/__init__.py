"""HTML reports: one self-contained file each, that needs no network and opens from a bucket or a disk."""
