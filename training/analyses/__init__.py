"""What a trained twin says about its mice (paper, appendix A)."""
