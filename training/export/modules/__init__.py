"""The torch modules that graphs are made of: what `training.models` computes, in the form that serves fastest."""
