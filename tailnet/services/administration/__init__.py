"""Administration: what the commands of `tailnet admin` and the API below /api/v2/admin both do."""
