"""Page templates, charts and pictures shared by the HTML reports."""
