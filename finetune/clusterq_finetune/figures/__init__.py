"""The papers' figures, for any run: deep features, diversity, grids of images, sensitivity to a setting. docs/figures.md"""
