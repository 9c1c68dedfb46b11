"""Arrays in, arrays out: the engine that runs a bundle's graphs. No HTTP."""
