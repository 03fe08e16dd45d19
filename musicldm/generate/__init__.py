"""The generation service behind the command line and the evaluation: requests in, pieces with recipes out."""
