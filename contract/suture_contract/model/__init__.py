"""The portable model as a file: its format, its operator graph, what its owner says about it, signatures."""
