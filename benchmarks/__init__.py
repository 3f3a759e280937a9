"""Speed and memory of the library against the published loop: `make bench`."""
