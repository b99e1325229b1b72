"""The commands below `dlsr bench`."""
