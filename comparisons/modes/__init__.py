"""In which modes each operator is right, and in which it raises."""
