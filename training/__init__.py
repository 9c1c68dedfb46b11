"""Models, recordings, training, evaluation and export of digital twins. Needs torch."""
