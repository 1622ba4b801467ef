"""The tables of an output: schema, parts, the commit protocol, the lease, and the images that are completed."""
