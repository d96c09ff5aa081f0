"""A record's bytes to a row of COPY, by code that is made for the table's columns.

rows.py is what others call, in a worker's poll loop; the door makes its encoders here too, and throws the rows away. No
I/O anywhere in it.
"""
