"""Whether the agent learns, what it could reach at best, and what each setting is worth."""
