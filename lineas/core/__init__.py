"""The one door to C: checks, threads, operations; whoever wants a kernel comes through here."""
