"""What does the work behind the generators' configs; heavy modules are imported when one loads."""
