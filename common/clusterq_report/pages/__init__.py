"""Pages for each kind of run, made from its folder."""
