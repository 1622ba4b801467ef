"""Command-line entry points: each parses its options, calls `pipeline`, prints the result and sets the exit code."""
