"""The measured numbers of the book, one JSON file each. `wotlab.results.read` reads them."""
