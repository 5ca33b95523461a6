"""The operators' HTTP API, on aiohttp; `fleet.api.app` puts it together."""
