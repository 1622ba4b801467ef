-- Images with the lowest mean confidence
-- limit (number) = 20: maximum number of images
-- prefix (prefix) = : only images whose URI starts with this prefix
SELECT image_uri, round(mean_confidence, 3) AS mean_confidence, round(mean_entropy, 3) AS mean_entropy,
    round(100 * low_confidence_fraction, 1) AS percent_below_half, len(low_confidence_boxes) AS doubtful_regions
FROM masks
WHERE status = 'ok' AND starts_with(image_uri, $prefix)
ORDER BY masks.mean_confidence, image_uri
LIMIT CAST($limit AS BIGINT)
