"""What a trained twin says about its mice (paper, appendix A): one analysis a file, each with its figure."""
