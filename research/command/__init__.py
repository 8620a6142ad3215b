"""The verbs of the command line: each takes its arguments and imports what it needs itself."""
