"""HTML: pages, styles, and text on its way into them."""
