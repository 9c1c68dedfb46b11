"""Long runs against a live server: `make load`, `make soak`, `make fuzz`, and their short versions in the tests."""
