"""Why images are refused, in words; which of them belong together; and where they lie on a map."""
