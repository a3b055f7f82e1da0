"""A deployed host as its operator sees it: what runs (``status``), and what is wrong (``doctor``)."""
