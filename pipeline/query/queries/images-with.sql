-- Images that contain one class and, optionally, do not contain another
-- class (class): class that the images contain
-- without (class) = : class that the images do not contain
-- percent (number) = 1: minimum area of the class, in percent of the image
-- limit (number) = 100: maximum number of images, largest area of the class first
SELECT image_uri, round(100 * pixel_fraction, 2) AS percent, round(mean_confidence, 3) AS mean_confidence,
    x_min, y_min, x_max, y_max
FROM class_stats
WHERE class_name = $class
    AND pixel_fraction >= CAST($percent AS DOUBLE) / 100
    AND image_id NOT IN (SELECT image_id FROM class_stats WHERE class_name = $without)
ORDER BY pixel_fraction DESC, image_uri
LIMIT CAST($limit AS BIGINT)
