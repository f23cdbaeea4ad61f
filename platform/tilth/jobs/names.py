"""What a job finds in its environment: said by the spec, read inside the job."""

from __future__ import annotations

#: NAME=env or NAME=/path/to/file, separated by commas; never a value
SECRETS = "TILTH_SECRETS"
#: seconds
TIME_LIMIT = "TILTH_TIME_LIMIT"
