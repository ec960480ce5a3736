"""Maps: what they are, how they combine, how they are kept. Nothing here knows a network."""
