"""The public surface: routes, error forms, the small endpoints the gateway answers itself."""
