"""Who may do what: whoever is asked, and what is remembered of the answers."""
