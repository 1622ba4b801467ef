-- Number of failed images by stage and kind, with an example of each
-- prefix (prefix) = : only images whose URI starts with this prefix
SELECT error_stage AS stage, error_type AS kind, count(*) AS images,
    round(100 * count(*) / (SELECT count(*) FROM masks WHERE starts_with(image_uri, $prefix)), 3) AS percent,
    min(image_uri) AS example, arg_min(error_message, image_uri) AS message
FROM masks
WHERE status = 'error' AND starts_with(image_uri, $prefix)
GROUP BY ALL
ORDER BY images DESC, kind
