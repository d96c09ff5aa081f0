"""How far a file is sent: what goes into Kafka as an offset's metadata, with each transaction. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from kbatchd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far a file is sent."""

    #: Of the unpacked file, the bytes and lines that are done with, and a hash of these bytes.
    offset: int
    lines: int
    sha256: str
    #: The records in them: those that are in the topic, and those that failed.
    sent: int
    failed: int
    #: Whether that was all of the file.
    finished: bool
    #: Tells the runs apart.
    run: str

    @property
    def records(self) -> int:
        """All records of the part that is done with."""
        return self.sent + self.failed

    def metadata(self) -> str:
        """Write it as an offset's metadata: 200 bytes of the 4,096 that brokers take."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, metadata: str) -> Bookmark:
        """Read what `metadata` wrote."""
        try:
            return cls(**json.loads(metadata))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"the stored bookmark is not ours: {metadata[:100]!r}; start over with --restart"
            ) from error
