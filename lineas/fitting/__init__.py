"""How maps are learned: a fit, its options, its loss, its log, and the methods that need no fit."""
