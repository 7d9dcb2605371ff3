"""Parts of ``semi_supervised.py``: the program M2, and the table and picture of its errors."""
