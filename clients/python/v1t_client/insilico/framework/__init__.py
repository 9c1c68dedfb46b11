"""The base of all experiments: predictors, subjects, work folders, results, receipts and figures."""
