-- DuckDB: views of an output. s3:// needs the httpfs extension, and CREATE SECRET for the credentials.

SET VARIABLE output = 'OUTPUT';

CREATE OR REPLACE VIEW masks AS
  FROM read_parquet(getvariable('output') || '/masks/*.parquet', hive_partitioning = false);

CREATE OR REPLACE VIEW class_stats AS
  FROM read_parquet(getvariable('output') || '/class_stats/*.parquet', hive_partitioning = false);

CREATE OR REPLACE VIEW classes AS
  FROM read_parquet(getvariable('output') || '/classes.parquet', hive_partitioning = false);
