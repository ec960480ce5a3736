"""Files: written whole, and read as data that anybody may have made."""
