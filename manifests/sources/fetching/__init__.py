"""Images behind URLs: lists of URLs, HTTP requests, robots.txt, and a folder with what was fetched."""
