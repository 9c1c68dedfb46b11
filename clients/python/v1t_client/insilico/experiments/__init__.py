"""The classic experiments: receptive fields, tuning, behaviour, screening, retinotopy, attention."""
