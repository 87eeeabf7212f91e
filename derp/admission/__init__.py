"""Who may come in, as far as it can be known without asking anybody: signed documents, and what follows from them."""
