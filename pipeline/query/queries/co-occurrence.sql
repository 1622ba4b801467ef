-- Classes that appear in the same images; a lift above 1 means more often than by chance
-- percent = 1: minimum area of each of the two classes, in percent of the image
-- limit = 50: maximum number of pairs
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
ORDER BY pairs.images DESC, class, other
LIMIT CAST($limit AS BIGINT)
