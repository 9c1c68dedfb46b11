"""Most exciting inputs: ascent, recipes, masks, diverse sets and baselines."""
