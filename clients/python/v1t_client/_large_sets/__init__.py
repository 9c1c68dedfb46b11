"""Sets of images larger than one request: read, cut, asked and written."""
