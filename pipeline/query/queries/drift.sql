-- Change of class areas between two runs or two URI prefixes; the stability indices add up to the PSI
-- before (run or prefix): run id or URI prefix to compare with
-- after (run or prefix): run id or URI prefix to compare
WITH chosen AS (
    SELECT class_name, pixel_count, 'before' AS side FROM class_stats
    WHERE run_id = $before OR starts_with(image_uri, $before)
    UNION ALL
    SELECT class_name, pixel_count, 'after' FROM class_stats
    WHERE run_id = $after OR starts_with(image_uri, $after)
), shares AS (
    SELECT
        class_name,
        coalesce(sum(pixel_count) FILTER (side = 'before'), 0)
            / (SELECT sum(pixel_count) FROM chosen WHERE side = 'before') AS share_before,
        coalesce(sum(pixel_count) FILTER (side = 'after'), 0)
            / (SELECT sum(pixel_count) FROM chosen WHERE side = 'after') AS share_after
    FROM chosen
    GROUP BY class_name
)
SELECT
    class_name AS class,
    round(100 * share_before, 2) AS percent_before,
    round(100 * share_after, 2) AS percent_after,
    round(100 * (share_after - share_before), 2) AS change,
    -- Contribution of the class to the population stability index (PSI). A share of 0 counts as one millionth.
    round((share_after - share_before) * ln(greatest(share_after, 1e-6) / greatest(share_before, 1e-6)), 4)
        AS stability_index
FROM shares
ORDER BY stability_index DESC, class
