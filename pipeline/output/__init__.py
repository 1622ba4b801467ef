"""Output tables: schema, parts, commit protocol, lease, and the set of completed images."""
