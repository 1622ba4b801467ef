"""Entry points: parse the configuration, call `pipeline`, print, exit code."""
