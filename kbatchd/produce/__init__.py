"""`kbatchd produce`: the records of files into a route's topic, checked at the door, none twice, none left out.

All of it runs in the command's main thread. file_producer.py remembers in Kafka how far a file is sent.
"""
