-- How much each class takes of the pixels of each folder, percent
-- class = : this class alone; all where it is empty
-- depth = 0: so many folders of the URI's path; 0: all of them
WITH rows AS (
    SELECT class_name, pixel_count, string_split(image_uri, '/')[:-2] AS folders
    FROM class_stats
), by_folder AS (
    SELECT
        -- Scheme and bucket or root come first: 's3:', '', 'bucket'.
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
