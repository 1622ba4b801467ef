-- Images that have one class and, if you like, lack another
-- class: the class that they have
-- without = : a class that they lack
-- percent = 1: how much of the image the class must take at the least
-- limit = 100: images at the most, those with most of it first
SELECT image_uri, round(100 * pixel_fraction, 2) AS percent, round(mean_confidence, 3) AS mean_confidence,
    x_min, y_min, x_max, y_max
FROM class_stats
WHERE class_name = $class
    AND pixel_fraction >= CAST($percent AS DOUBLE) / 100
    AND image_id NOT IN (SELECT image_id FROM class_stats WHERE class_name = $without)
ORDER BY pixel_fraction DESC, image_uri
LIMIT CAST($limit AS BIGINT)
