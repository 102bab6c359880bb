"""Program -> Kernels: names, order and lifetimes of what is printed."""
