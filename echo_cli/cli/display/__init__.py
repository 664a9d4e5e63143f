"""Output of the commands: tables, transcripts and progress."""
