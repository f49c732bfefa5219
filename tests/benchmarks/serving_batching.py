"""The generator alone for `bench_serving.py`: concurrent callers, with micro-batching and without.

Owns the restarts that the switch takes, and reads batch sizes and queue waits off the generator's metrics.
"""

import asyncio
import urllib.request

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families
from serving_load import closed_loop, raw
from serving_measures import BEAM, Bench, Row

from protos.headrace.v1 import generator_pb2
from services.settings import Settings
from streaming.histories.store import HistoryStore

_SETTLE_S = 1.0


async def batching_rows(bench: Bench) -> list[Row]:
    """The generator alone, with and without micro-batching, at ever more concurrent callers.

    Leaves the generator without micro-batching.
    """
    bodies = _generate_bodies(bench)
    usual = bench.settings
    rows = []
    for batching in (True, False):
        max_batch = usual.generator.max_batch if batching else 1
        await _restart_generator(bench, usual, max_batch)
        async with grpc.aio.insecure_channel(usual.endpoints.address("generator")) as channel:
            generate = raw(channel, "GeneratorService/Generate")
            await closed_loop(generate, bodies, num_clients=2, seconds=bench.plan.caller_seconds / 4)
            for num_callers in bench.plan.num_callers:
                before = _queue_figures(usual)
                answers = await closed_loop(
                    generate, bodies, num_clients=num_callers, seconds=bench.plan.caller_seconds
                )
                rows.append(
                    {
                        "callers": num_callers,
                        "batching": batching,
                        "max_batch": max_batch,
                        **answers.figures(),
                        **_queue_means(before, _queue_figures(usual)),
                    }
                )
    return rows


def _generate_bodies(bench: Bench) -> list[bytes]:
    """What the gateway would ask for each user; without a key, so that no state is kept."""
    path = bench.settings.store.history_path
    with HistoryStore.open(path, read_only=True) as store:
        return [
            generator_pb2.GenerateRequest(
                history=(history := store.get(user, bench.settings.gateway.history_limit)),
                exclude_item_ids=sorted({event.item_id for event in history}),
                num_candidates=bench.settings.search.num_dense,
                beam=BEAM,
            ).SerializeToString()
            for user in bench.users
        ]


async def _restart_generator(bench: Bench, usual: Settings, max_batch: int) -> None:
    generator = type(usual.generator)(max_batch=max_batch, max_kept_users=usual.generator.max_kept_users)
    bench.stack.settings = usual.model_copy(update={"generator": generator})
    await bench.stack.restart_service("generator")
    await bench.stack.wait_ready()
    await asyncio.sleep(_SETTLE_S)


def _queue_figures(settings: Settings) -> dict[str, float]:
    """Sums and counts of batch sizes and queue waits, from the page of the generator's process."""
    host = "gateway" if settings.layout == "together" else "generator"
    url = f"http://{settings.endpoints.host}:{settings.endpoints.metrics_port(host)}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        text = page.read().decode()
    wanted = ("headrace_batch_size", "headrace_queue_wait_seconds")
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        if family.name in wanted
        for sample in family.samples
        if sample.name.endswith(("_sum", "_count"))
    }


def _queue_means(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    new = {name: value - before.get(name, 0.0) for name, value in after.items()}

    def mean(name: str) -> float:
        return new[f"{name}_sum"] / max(1.0, new[f"{name}_count"])

    return {
        "mean_batch": mean("headrace_batch_size"),
        "mean_queue_wait_ms": mean("headrace_queue_wait_seconds") * 1e3,
    }
