"""Maps on a running network: which sites, which rows, which tokens, and the handle that takes them off again."""
