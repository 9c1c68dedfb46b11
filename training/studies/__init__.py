"""The paper's studies, and the hyperparameter sweep."""
