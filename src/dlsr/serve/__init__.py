"""A detector behind HTTP, with a web page. Needs the extra `serve`."""
