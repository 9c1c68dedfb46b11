"""Long tests of a live server: `make load`, `make soak` and `make fuzz`. The test suite runs short versions of them."""
