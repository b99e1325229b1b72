"""Results as files: tables, plots and HTML pages."""
