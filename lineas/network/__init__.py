"""What is known of a torch model: its sites, its inputs, its state, how it is called. Nothing here knows a map."""
