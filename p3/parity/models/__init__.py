"""The checker of whole models: parameters matched, layers compared, causes named."""
