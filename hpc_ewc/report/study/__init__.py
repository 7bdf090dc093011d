"""Records and the files beside them, read into a study: which runs and columns there are."""
