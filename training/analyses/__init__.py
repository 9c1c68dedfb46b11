"""Analyses of a trained twin: pupil size, behaviour and retinotopy (paper, appendix A)."""
