"""Bodies to plain data, and plain data to arrays and to the types of `schemas`."""
