"""Creates the app's containers and queues: what the deployment does in Azure.

``python -m devhost.prepare``
"""

from __future__ import annotations

import asyncio
import sys


async def prepare() -> None:
    """Make the containers and queues that do not exist in the account of ``AzureWebJobsStorage``.

    Tables are made by the app when it first writes to them.
    """
    from shared import container

    store, queue = container.blob_store(), container.operation_queue()
    try:
        await store.prepare()
        await queue.prepare()
    finally:
        await store.close()
        await queue.close()


if __name__ == "__main__":
    try:
        asyncio.run(prepare())
    except Exception as error:
        sys.exit(f"Storage could not be prepared: {error}")
