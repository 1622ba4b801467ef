-- Results and speed of each run; runs without finished_at were stopped or are still in progress
WITH of_run AS (
    SELECT run_id, count(*) AS rows_now, min(segmented_at) AS first_part, max(segmented_at) AS last_part
    FROM masks GROUP BY run_id
)
SELECT
    run_id,
    finished_at,
    labelled,
    failed,
    rows_now,
    round(seconds, 1) AS seconds,
    round((labelled + failed) / nullif(seconds, 0), 2) AS images_per_s,
    round(seconds_to_first, 1) AS seconds_to_first,
    first_part,
    last_part
FROM runs FULL JOIN of_run USING (run_id)
ORDER BY coalesce(finished_at, last_part), run_id
