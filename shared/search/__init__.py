"""The search: a tree of arrays, selection rules, expansion and backup."""
