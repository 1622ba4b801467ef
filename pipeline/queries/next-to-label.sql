-- Images to annotate next: the model is least sure of them, and each mix of classes has its turn before one has its next
-- number: how many images
-- prefix = : of images whose URI begins with this
WITH mixes AS (
    -- Frames of one scene have the same classes; small ones come and go.
    SELECT image_id, string_agg(class_name, ', ' ORDER BY class_id) AS mix
    FROM class_stats
    WHERE pixel_fraction >= 0.05
    GROUP BY image_id
), ranked AS (
    SELECT
        image_uri, mean_entropy, mean_confidence, low_confidence_fraction, mix,
        row_number() OVER (PARTITION BY mix ORDER BY mean_entropy DESC, image_uri) AS turn
    FROM masks LEFT JOIN mixes USING (image_id)
    WHERE status = 'ok' AND starts_with(image_uri, $prefix)
)
SELECT image_uri, round(mean_entropy, 4) AS mean_entropy, round(mean_confidence, 3) AS mean_confidence,
    round(100 * low_confidence_fraction, 1) AS percent_below_half, mix
FROM ranked
ORDER BY turn, ranked.mean_entropy DESC, image_uri
LIMIT CAST($number AS BIGINT)
