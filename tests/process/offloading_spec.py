"""KV offloaded to memory of the host by torch's copies: vLLM's own worker for it asks for a GPU."""

import time
from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostWorker(OffloadingWorker):
    """Copies block by block, at once."""

    def __init__(self, kv_caches: CanonicalKVCaches, num_chunks: int) -> None:
        self._blocks = [held.tensor for held in kv_caches.tensors]
        self._chunks = [torch.zeros((num_chunks, *each.shape[1:]), dtype=each.dtype) for each in self._blocks]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        return self._copy(job_id, self._blocks, src_spec, self._chunks, dst_spec)

    def submit_load(self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copy(job_id, self._chunks, src_spec, self._blocks, dst_spec)

    def _copy(self, job_id: int, sources: Any, source: Any, targets: Any, target: Any) -> bool:
        begun, num_bytes = time.perf_counter(), 0
        for one, other in zip(source.block_ids, target.block_ids, strict=True):
            for taken, given in zip(sources, targets, strict=True):
                given[int(other)].copy_(taken[int(one)])
                num_bytes += taken[int(one)].nbytes
        self._finished.append(TransferResult(job_id, True, num_bytes, time.perf_counter() - begun))
        return True

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Everything is done when it is submitted."""


class HostSpec(CPUOffloadingSpec):
    """vLLM's bookkeeping, with that worker."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if self._worker is None:
            self._worker = HostWorker(kv_caches, self.num_chunks)
        return self._worker
