"""What every experiment is built on: subjects, results, receipts, checkpoints and plots."""
