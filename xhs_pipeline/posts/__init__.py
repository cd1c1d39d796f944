"""Reading posts from the outside world. Does not change their text or images (curation does), and knows no labels' meaning."""
