"""The command line: configuration files, commands, and the generated demo."""
