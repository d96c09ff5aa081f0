"""The door: whether a record would become a row, asked before it is in Kafka.

Used by the gateway and by `kbatchd produce`; nothing here writes to Kafka or into a table.
"""
