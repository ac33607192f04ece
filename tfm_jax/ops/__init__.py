"""Pure array functions: no parameters, no mesh, no state."""
