"""Networks and their files: loading, CLAP, adapters, and the checkpoints of MusicLDM's authors."""
