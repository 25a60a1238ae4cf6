"""What every package depends on: errors, configuration, files, the console. Imports nothing else of ours."""
