"""Creates the app's containers: what the deployment does in Azure. ``python -m devhost.prepare``."""

from __future__ import annotations

import asyncio
import sys


async def prepare() -> None:
    """Make the containers that do not exist in the account of ``AzureWebJobsStorage``."""
    from shared import container

    store = container.blob_store()
    try:
        await store.prepare()
    finally:
        await store.close()


if __name__ == "__main__":
    try:
        asyncio.run(prepare())
    except Exception as error:
        sys.exit(f"Storage could not be prepared: {error}")
