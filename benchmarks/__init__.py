"""The same work on celeriq and its peers, side by side: `make bench`."""
