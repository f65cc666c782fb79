"""Training of a generator: state, steps, inputs and centroids."""
