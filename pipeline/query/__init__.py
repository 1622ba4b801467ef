"""SQL on the tables of an output, with DuckDB."""
