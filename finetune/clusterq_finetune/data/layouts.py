"""Layouts of real images that `val` accepts, in words for help and errors. Free of torch."""

LAYOUTS = (
    "class folders (wnids for ImageNet), ImageNet's flat folder with Kaggle's LOC_val_solution.csv, ILSVRC2012_img_val.tar with the "
    "devkit beside it, webdataset tars, or CIFAR's python batches"
)
LAYOUTS_OR_OWN = f"{LAYOUTS}, or path/to/file.py:name, a dataset of (image, label) or a function that returns one"
