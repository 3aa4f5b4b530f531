"""Training scripts of users' own: their module, loader and loss under any algorithm, on the wall clock."""
