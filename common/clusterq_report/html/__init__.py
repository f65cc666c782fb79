"""HTML output: pages, styles, images and text."""
