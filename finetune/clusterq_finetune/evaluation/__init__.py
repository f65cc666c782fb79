"""Accuracy of classifiers and students on real images."""
