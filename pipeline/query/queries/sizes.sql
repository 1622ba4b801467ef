-- Number of images by size, with mean megapixels, file size and processing time
SELECT
    CASE WHEN longer < 256 THEN 'below 256' WHEN longer < 512 THEN '256 to 511' WHEN longer < 1024 THEN '512 to 1023'
        WHEN longer < 2048 THEN '1024 to 2047' WHEN longer < 4096 THEN '2048 to 4095' ELSE '4096 and above' END
        AS longer_side,
    count(*) AS images,
    round(avg(width * height / 1e6), 3) AS mean_megapixels,
    round(avg(size_bytes) / 1e3, 1) AS mean_kilobytes,
    round(avg(seconds), 3) AS mean_seconds
FROM (SELECT width::BIGINT AS width, height::BIGINT AS height, greatest(width, height) AS longer, size_bytes, seconds
    FROM masks WHERE status = 'ok')
GROUP BY longer_side
ORDER BY min(longer)
