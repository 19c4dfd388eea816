"""What PyTorch reaches on the same card, as bench.cc measures it: copies, matrix products of few rows, attention.

One JSON object a line. PyTorch has no positions per block: queries are taken as rotated, and only the attention itself
is timed.
"""

import json
import statistics

import torch
import torch.nn.functional as F

RUNS, WARM_UP = 9, 2


def line(**values):
    print(json.dumps(values), flush=True)


def seconds(work):
    times = []
    for run in range(RUNS + WARM_UP):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if run >= WARM_UP:
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def seconds_of_each(calls):
    """Each call reads memory of its own, in one graph, as the layers of a step do."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return seconds(graph.replay) / len(calls)


def main():
    properties = torch.cuda.get_device_properties(0)
    beyond_l2 = 4 * properties.L2_cache_size
    source = torch.randint(0, 255, (4 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / seconds(lambda: target.copy_(source))
    line(part="torch", version=torch.__version__, copy_gb_s=round(copy * 1e-9))
    del source, target

    for query_heads, kv_heads in ((32, 4), (40, 8)):
        for tokens in (300, 1024, 4096, 16384, 65536):
            kv_bytes = 4 * tokens * kv_heads * 128
            layers = min(200, max(8, beyond_l2 // kv_bytes + 1))
            kv = [torch.randn(2, 1, kv_heads, tokens, 128, dtype=torch.bfloat16, device="cuda") for _ in range(layers)]
            for workers in (1, 4):
                q = torch.randn(1, query_heads, workers, 128, dtype=torch.bfloat16, device="cuda")
                heads = f"{query_heads}/{kv_heads}"
                try:
                    calls = [
                        lambda layer=layer: F.scaled_dot_product_attention(q, layer[0], layer[1], enable_gqa=True)
                        for layer in kv
                    ]
                    us = seconds_of_each(calls) * 1e6
                    line(part="torch", op="attention", heads=heads, tokens=tokens, workers=workers, us=round(us, 2))
                except RuntimeError as error:
                    line(part="torch", op="attention", heads=heads, tokens=tokens, workers=workers, error=str(error)[:200])
            del kv

    for name, n, k in (("gate_up", 55296, 5120), ("down", 5120, 27648), ("o", 5120, 5120), ("head", 152064, 5120)):
        copies = max(2, beyond_l2 // (2 * n * k) + 1)
        weights = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda") * 0.02 for _ in range(copies)]
        for rows in (1, 4, 16, 64):
            x = torch.randn(rows, k, dtype=torch.bfloat16, device="cuda")
            s = seconds_of_each([lambda w=weights[i % copies]: F.linear(x, w) for i in range(max(copies, 8))])
            share = round(2 * n * k / s / copy, 3)
            line(part="torch", op="matmul", name=name, rows=rows, us=round(s * 1e6, 2), copy_share=share)
        del weights


main()
