-- Area of each class in each folder, in percent of the folder's pixels
-- class (class) = : only this class; empty for all classes
-- depth (number) = 0: number of folders of the URI's path to group by; 0 for the full path
WITH rows AS (
    SELECT class_name, pixel_count, string_split(image_uri, '/')[:-2] AS folders
    FROM class_stats
), by_folder AS (
    SELECT
        -- The first three elements are the scheme and the bucket or root: 's3:', '', 'bucket'.
        array_to_string(CASE WHEN CAST($depth AS INTEGER) = 0 THEN folders
            ELSE folders[:CAST($depth AS INTEGER) + 3] END, '/') AS folder,
        class_name,
        sum(pixel_count) AS pixels
    FROM rows
    GROUP BY ALL
), shares AS (
    SELECT folder, class_name AS class, round(100 * pixels / sum(pixels) OVER (PARTITION BY folder), 2) AS percent
    FROM by_folder
)
SELECT folder, class, percent FROM shares
WHERE $class = '' OR class = $class
ORDER BY folder, percent DESC, class
