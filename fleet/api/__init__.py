"""The operators' HTTP API and the pages of the console, on aiohttp."""
