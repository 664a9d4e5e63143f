"""Files that hold many records or files: tables, data sets and archives."""
