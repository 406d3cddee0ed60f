"""The HTTP side of the site: pages, API, templates, static files."""
