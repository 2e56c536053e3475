"""The pages of docs/, followed: their files are used and their commands are run."""
