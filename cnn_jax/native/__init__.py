"""C++ code and its compilation; imports no JAX, so that a command can compile while JAX is imported."""
