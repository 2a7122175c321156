"""vLLM: with ``KVXFER_ENDPOINT`` set, every rank of an engine publishes what its KV connector measures.

vLLM calls `plugin` in its front end, in each engine core and in each worker, wherever kvxfer is installed: so nothing
is imported here, and nothing is done unless the variable is set.
"""

import logging
import os

# Below vLLM's own logger, which has a handler and a level; another one would print warnings alone, without a time.
logger = logging.getLogger("vllm.kvxfer")


def plugin() -> None:
    """Let the connectors that this process will make be published; vLLM's entry point ``vllm.general_plugins``."""
    if not os.environ.get("KVXFER_ENDPOINT"):
        return
    try:
        from kvxfer.integrations.vllm.seam import install  # noqa: PLC0415 - not for who does not ask for it

        install()
    except Exception as error:  # noqa: BLE001 - vLLM calls this unguarded, and serving goes on
        logger.warning("kvxfer publishes nothing of this process: %r", error)
