-- Images to annotate next: less confident than their neighbors by name, and balanced over combinations of classes
-- number (number): number of images
-- prefix (prefix) = : only images whose URI starts with this prefix
WITH mixes AS (
    -- Ignore small classes, which appear and disappear from frame to frame.
    SELECT image_id, string_agg(class_name, ', ' ORDER BY class_id) AS mix
    FROM class_stats
    WHERE pixel_fraction >= 0.05
    GROUP BY image_id
), labelled AS (
    SELECT
        image_id, image_uri, mean_entropy, mean_confidence, low_confidence_fraction,
        -- Selects one or two of twenty frames of a scene, whose names are usually adjacent.
        mean_entropy >= max(mean_entropy) OVER (
            ORDER BY image_uri ROWS BETWEEN 4 PRECEDING AND 4 FOLLOWING
        ) AS is_peak
    FROM masks
    WHERE status = 'ok' AND starts_with(image_uri, $prefix)
), ranked AS (
    SELECT
        *,
        -- Proportional sampling: a combination that is rare, or that exists only in wrong predictions, gets no more
        -- than its share.
        (row_number() OVER (PARTITION BY is_peak, mix ORDER BY mean_entropy DESC, image_uri) - 0.5)
        / count(*) OVER (PARTITION BY is_peak, mix) AS turn
    FROM labelled LEFT JOIN mixes USING (image_id)
)
SELECT image_uri, round(mean_entropy, 4) AS mean_entropy, round(mean_confidence, 3) AS mean_confidence,
    round(100 * low_confidence_fraction, 1) AS percent_below_half, mix
FROM ranked
ORDER BY is_peak DESC, turn, ranked.mean_entropy DESC, image_uri
LIMIT CAST($number AS BIGINT)
