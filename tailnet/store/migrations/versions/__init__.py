"""One file per schema step, numbered; never changed once released."""
