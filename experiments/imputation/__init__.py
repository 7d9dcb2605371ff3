"""Parts of the experiment on missing values: other methods, tables, and MIWAE on pictures and tables."""
