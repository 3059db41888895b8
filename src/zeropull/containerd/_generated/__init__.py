"""Made by `python -m zeropull.containerd.regenerate`; never edited."""
