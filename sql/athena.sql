-- Athena: tables of an output, one statement at a time. OUTPUT is s3://BUCKET/PREFIX.

CREATE EXTERNAL TABLE masks (
  image_id BINARY COMMENT '16-byte BLAKE2b hash of image_uri',
  image_uri STRING COMMENT 'the input image',
  etag STRING COMMENT 'the objects ETag when it was read, or listed if it never was, null on a disk',
  size_bytes BIGINT COMMENT 'size of the image file when it was read, bytes',
  carried ARRAY<STRUCT<key: STRING, value: STRING>> COMMENT 'columns carried from the manifest by name, as text, null if none',
  width INT COMMENT 'pixels, as a viewer shows the image',
  height INT COMMENT 'pixels, as a viewer shows the image',
  status STRING COMMENT 'ok or error',
  error_stage STRING COMMENT 'list, download, decode or predict, null for ok',
  error_type STRING COMMENT 'kind of failure, one of a few words, null for ok',
  error_message STRING COMMENT 'what went wrong, null for ok',
  mask STRUCT<bytes: BINARY, path: STRING> COMMENT 'PNG of class ids at the images full size, and a name for it, null for error',
  mean_confidence FLOAT COMMENT 'mean over pixels of the largest class probability',
  mean_entropy FLOAT COMMENT 'mean over pixels of the entropy of the class probabilities, nats',
  low_confidence_fraction FLOAT COMMENT 'share of pixels whose largest probability is below 0.5',
  low_confidence_boxes ARRAY<STRUCT<x_min: INT, y_min: INT, x_max: INT, y_max: INT, pixel_count: BIGINT>> COMMENT 'the largest regions of low confidence, most pixels first: box, half open, and pixels below 0.5 in it',
  class_ids ARRAY<INT> COMMENT 'the classes present, ascending',
  model_id STRING COMMENT 'hash of weights, architecture and preprocessing',
  run_id STRING COMMENT 'the run that wrote this row',
  segmented_at TIMESTAMP COMMENT 'when the row was made',
  seconds FLOAT COMMENT 'decoding and prediction of this image, seconds'
)
STORED AS PARQUET
LOCATION 'OUTPUT/masks/';

CREATE EXTERNAL TABLE class_stats (
  image_id BINARY COMMENT '16-byte BLAKE2b hash of image_uri',
  image_uri STRING COMMENT 'the input image',
  class_id INT COMMENT 'class id, as in classes.parquet',
  class_name STRING COMMENT 'class name',
  pixel_count BIGINT COMMENT 'pixels of the class',
  pixel_fraction DOUBLE COMMENT 'pixel_count over width x height',
  mean_confidence FLOAT COMMENT 'mean largest probability over the classs pixels',
  x_min INT COMMENT 'bounding box, left column',
  y_min INT COMMENT 'bounding box, top row',
  x_max INT COMMENT 'bounding box, first column to the right of it',
  y_max INT COMMENT 'bounding box, first row below it',
  centroid_x FLOAT COMMENT 'mean column of the classs pixels',
  centroid_y FLOAT COMMENT 'mean row of the classs pixels',
  model_id STRING COMMENT 'hash of weights, architecture and preprocessing',
  run_id STRING COMMENT 'the run that wrote this row'
)
STORED AS PARQUET
LOCATION 'OUTPUT/class_stats/';

-- A table of Athena's is a folder, and classes.parquet is a file: these are the classes that occur, without
-- their colours.
CREATE OR REPLACE VIEW classes AS
SELECT class_id, arbitrary(class_name) AS class_name FROM class_stats GROUP BY class_id;
