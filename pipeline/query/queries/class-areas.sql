-- How much of all labelled pixels each class takes, and in how many images it is
-- prefix = : of images whose URI begins with this
SELECT
    class_name AS class,
    round(100 * sum(pixel_count) / sum(sum(pixel_count)) OVER (), 2) AS percent_of_pixels,
    count(*) AS images,
    round(100 * count(*) / (SELECT count(*) FROM masks WHERE status = 'ok' AND starts_with(image_uri, $prefix)), 2)
        AS percent_of_images,
    round(sum(pixel_count * mean_confidence) / sum(pixel_count), 3) AS mean_confidence
FROM class_stats
WHERE starts_with(image_uri, $prefix)
GROUP BY class_name
ORDER BY percent_of_pixels DESC, class
