"""The service: a detector behind HTTP, with a page to look at. Needs the extra `serve`."""
