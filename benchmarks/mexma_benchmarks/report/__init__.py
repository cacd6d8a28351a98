"""A result as people read it: Markdown, one HTML page, and charts."""
