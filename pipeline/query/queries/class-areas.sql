-- Share of each class in all labeled pixels, and the number of images that contain it
-- prefix (prefix) = : only images whose URI starts with this prefix
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
