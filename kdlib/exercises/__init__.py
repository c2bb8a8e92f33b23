"""The checks of the exercises, a module for each notebook; `kdlib.check` loads them."""
