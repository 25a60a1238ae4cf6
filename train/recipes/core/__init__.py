"""What a recipe consists of. The recipes are the files of the folder above, one each."""
