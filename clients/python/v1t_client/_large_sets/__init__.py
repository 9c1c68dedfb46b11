"""Sets of images that are larger than one request: read, cut into chunks, predicted and written."""
