-- Spark: external tables on an output. OUTPUT is a folder or s3a://BUCKET/PREFIX.

CREATE TABLE masks (
  image_id BINARY COMMENT '16-byte BLAKE2b hash of image_uri',
  image_uri STRING COMMENT 'URI of the input image',
  etag STRING COMMENT 'ETag of the object when read, or when listed if never read, null for local files',
  size_bytes BIGINT COMMENT 'size of the image file when it was read, in bytes',
  carried ARRAY<STRUCT<key: STRING, value: STRING>> COMMENT 'columns carried from the manifest: name and text of each, null if none',
  width INT COMMENT 'image width in pixels, after applying the EXIF orientation',
  height INT COMMENT 'image height in pixels, after applying the EXIF orientation',
  status STRING COMMENT 'ok or error',
  error_stage STRING COMMENT 'stage that failed: list, download, decode or predict, null if ok',
  error_type STRING COMMENT 'kind of failure, from a fixed list, null if ok',
  error_message STRING COMMENT 'error message, null if ok',
  mask STRUCT<bytes: BINARY, path: STRING> COMMENT 'PNG of class ids at the full size of the image, and a file name for it, null if error',
  mean_confidence FLOAT COMMENT 'mean over the pixels with data of the largest class probability',
  mean_entropy FLOAT COMMENT 'mean over the pixels with data of the entropy of the class probabilities, in nats',
  low_confidence_fraction FLOAT COMMENT 'fraction of the pixels with data whose largest probability is below 0.5',
  low_confidence_boxes ARRAY<STRUCT<x_min: INT, y_min: INT, x_max: INT, y_max: INT, pixel_count: BIGINT>> COMMENT 'largest regions of low confidence, most pixels first: box (max exclusive), number of pixels below 0.5',
  class_ids ARRAY<INT> COMMENT 'ids of the classes in the mask, ascending',
  model_id STRING COMMENT 'hash of weights, architecture and preprocessing',
  run_id STRING COMMENT 'run that wrote this row',
  segmented_at TIMESTAMP COMMENT 'time at which the row was created',
  seconds FLOAT COMMENT 'time spent on decoding and predicting this image, in seconds'
)
USING parquet
LOCATION 'OUTPUT/masks';

CREATE TABLE class_stats (
  image_id BINARY COMMENT '16-byte BLAKE2b hash of image_uri',
  image_uri STRING COMMENT 'URI of the input image',
  class_id INT COMMENT 'class id, as in classes.parquet',
  class_name STRING COMMENT 'class name',
  pixel_count BIGINT COMMENT 'number of pixels of the class',
  pixel_fraction DOUBLE COMMENT 'pixel_count / number of pixels with data',
  mean_confidence FLOAT COMMENT 'mean over the pixels of the class of the largest class probability',
  x_min INT COMMENT 'bounding box: first column',
  y_min INT COMMENT 'bounding box: first row',
  x_max INT COMMENT 'bounding box: last column + 1',
  y_max INT COMMENT 'bounding box: last row + 1',
  centroid_x FLOAT COMMENT 'mean column of the pixels of the class',
  centroid_y FLOAT COMMENT 'mean row of the pixels of the class',
  model_id STRING COMMENT 'hash of weights, architecture and preprocessing',
  run_id STRING COMMENT 'run that wrote this row'
)
USING parquet
LOCATION 'OUTPUT/class_stats';

CREATE TABLE classes (
  class_id INT COMMENT 'class id: the pixel value in masks',
  class_name STRING COMMENT 'class name',
  red INT COMMENT 'red component of the color of the class',
  green INT COMMENT 'green component of the color of the class',
  blue INT COMMENT 'blue component of the color of the class'
)
USING parquet
LOCATION 'OUTPUT/classes.parquet';
