"""What a person types: the command line, the demo, the benches."""
