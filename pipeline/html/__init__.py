"""The page shell, charts and pictures that the HTML reports share."""
