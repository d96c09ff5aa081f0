"""kbatchd moves records from Kafka into PostgreSQL tables in large batches, exactly once."""

__version__ = "0.1.0"
