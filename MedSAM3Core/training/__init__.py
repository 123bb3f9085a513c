"""Training: from a folder of images and masks to a model folder."""
