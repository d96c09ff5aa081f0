"""The least that a configuration file must say."""

MINIMAL = """\
[kafka]
bootstrap_servers = "localhost:9092"
[postgres]
dsn = "postgresql://kbatchd@localhost/app"
[[route]]
topic = "requests"
table = "public.requests"
"""
