"""Who asks: key files, the authenticated tenant, what it may use."""
