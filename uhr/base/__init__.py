"""What every room stands on: errors, configuration, files, the console. Imports nothing else of ours."""
