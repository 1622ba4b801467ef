-- Pairs of classes by lift: a lift of 2 means that they appear together twice as often as by chance
-- percent (number) = 1: minimum area of each of the two classes, in percent of the image
-- limit (number) = 50: maximum number of pairs, highest lift first
-- min_images (number) = 10: minimum number of images with both classes, since the lift of rare pairs is noise
WITH present AS (
    SELECT image_id, class_name FROM class_stats WHERE pixel_fraction >= CAST($percent AS DOUBLE) / 100
), alone AS (
    SELECT class_name, count(*) AS images FROM present GROUP BY class_name
), pairs AS (
    SELECT a.class_name AS class, b.class_name AS other, count(*) AS images
    FROM present a JOIN present b ON a.image_id = b.image_id AND a.class_name < b.class_name
    GROUP BY ALL
)
SELECT
    class,
    other,
    pairs.images,
    round(pairs.images / (one.images + two.images - pairs.images), 3) AS jaccard,
    round(pairs.images * (SELECT count(*) FROM masks WHERE status = 'ok') / (one.images * two.images), 2) AS lift
FROM pairs
JOIN alone one ON one.class_name = class
JOIN alone two ON two.class_name = other
WHERE pairs.images >= CAST($min_images AS BIGINT)
ORDER BY lift DESC, pairs.images DESC, class, other
LIMIT CAST($limit AS BIGINT)
