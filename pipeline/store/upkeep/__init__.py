"""Looking after a store: verify and repair, gc, repack, dump, summary."""
