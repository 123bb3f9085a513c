"""How fast, in how much memory, and compared with what: our path beside the published ones on the same machine."""
