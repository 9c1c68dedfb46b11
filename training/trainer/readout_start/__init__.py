"""Where readouts look before the first update: from the training trials, or from a regression on a frozen core."""
