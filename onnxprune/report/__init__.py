"""One report -> tables for people, JSON for programs. What others measured becomes a report here, too."""
