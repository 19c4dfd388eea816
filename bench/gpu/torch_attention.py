"""Attention over the same tokens with PyTorch: scaled_dot_product_attention with grouped heads.

Prints JSON. Median of the runs, each with a cold L2; one new token of each worker looks at all cached tokens.
PyTorch has no per-block positions: queries are taken as rotated, and only the attention itself is timed.
"""

import json
import statistics

import torch
import torch.nn.functional as F

QUERY_HEADS, KV_HEADS, HEAD_DIM, RUNS = 40, 8, 128, 30

flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")


def microseconds(work):
    times = []
    for run in range(RUNS + 3):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if run >= 3:
            times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def main():
    rows = []
    for tokens in (300, 1024, 4096, 8192, 16384, 32768, 65536):
        k = torch.randn(1, KV_HEADS, tokens, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        v = torch.randn_like(k)
        for workers in (1, 2, 4, 8):
            q = torch.randn(1, QUERY_HEADS, workers, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
            us = microseconds(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
            rows.append({"tokens": tokens, "workers": workers, "us": round(us, 2)})
    print(json.dumps({"version": torch.__version__, "op": "scaled_dot_product_attention", "runs": rows}))


main()
