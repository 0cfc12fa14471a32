"""Translation tables as arrays: the model, the index, capture and walk."""
