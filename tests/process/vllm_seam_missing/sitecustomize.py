"""On the path of an engine: its vLLM makes connectors where kvxfer does not look, as one of another version may."""

import kvxfer.integrations.vllm.seam as looked_for

looked_for.FACTORIES = (("vllm.distributed.kv_transfer.kv_connector.factory", "KVConnectorFactory", "make"),)
